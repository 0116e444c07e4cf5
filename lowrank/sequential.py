"""Sequential refit: each projection learns from the inputs that the compressed model really delivers."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import tqdm
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ..common.processes import all_gather, broadcast, global_index, is_main_process, shard
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.layers import layer_inputs, projection_module, recorded
from .allocation import Ranks
from .compression import empty_lite_model, set_factors
from .moments import Moments
from .sensitivity import Sensitivities
from .spectrum import Factors, loss_metric, reduced_weight, regress
from .storage import load_layer, save_layer

IN_MEMORY = 4 * 2**30  # bytes of hidden states; beyond that they are kept on disk
STRIDE = 4  # of this many frames, which are much alike, one is regressed on


@torch.no_grad()
def refit(
    model: WhisperForConditionalGeneration,
    batches: Sequence[torch.Tensor],
    ranks: Ranks,
    sensitivities: Sensitivities,
    damping: float = 0.01,
    ridge: float = 0.1,
    folder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> LiteWhisperForConditionalGeneration:
    """
    Builds the LiteWhisper with these ranks so that errors do not pile up.

    In the order of computation every compressed projection is regressed on the inputs that the layers compressed
    before it deliver, with the original model's outputs as targets and the loss's metric as measure. `out_proj` and
    `fc2`, which write to the residual stream, also make up for the drift that has built up there.

    Time: about five forward passes of the encoder and, per layer, one linear system for each projection. Memory: the
    hidden states of both models, 15 MB a window for large-v3, on disk where they exceed 4 GB, and for one projection at
    a time the joint covariance of inputs and targets (328 MB in float64 for fc2 of large-v3). Of several processes each
    computes its shard of the batches and solves its shard of the systems of a layer, and all get the whole model.

    Args:
        model (`WhisperForConditionalGeneration`): the base model; it is not changed.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features; read once.
        ranks (`Ranks`): for example from `budget_ranks`.
        sensitivities (`Sensitivities`): from `collect_sensitivities`.
        damping (`float`): of the metric, see `loss_metric`.
        ridge (`float`): how strongly a projection is held to its original weights, see `regress`.
        folder (`Path`, *optional*):
            Every finished layer is kept there, by the main process, and not fitted again when an interrupted refit is
            repeated.
        origin (`dict`, *optional*): what else decides the outcome; a layer in `folder` made otherwise is refused.

    Returns:
        `LiteWhisperForConditionalGeneration`: the compressed model, in evaluation mode, in the base model's dtype and
        on its device.

    Raises:
        InputError: `folder` holds layers that were fitted with other settings.
    """
    lite = empty_lite_model(model, ranks)
    original, compressed = model.get_encoder().eval(), lite.get_encoder()
    with _hidden_states(model, batches, folder) as states:
        layers = zip(original.layers, compressed.layers, ranks, sensitivities.layers, strict=True)
        for index, (layer, twin, of_layer, sensitivity) in enumerate(tqdm(layers, "refit", len(ranks), unit="layer")):
            file = folder and folder / f"layer_{index:02}.safetensors"
            settings = {"ranks": ranks[: index + 1], "damping": damping, "ridge": ridge, "origin": origin}
            kept = broadcast(load_layer(file, settings) if file and is_main_process() and file.exists() else None)
            fitted: dict[str, Factors] = {}
            for half, stages in (
                (attention_half, (("q_proj", "k_proj", "v_proj"), ("out_proj",))),
                (mlp_half, (("fc1",), ("fc2",))),
            ):
                for stage in stages:
                    chosen = {name: of_layer[name] for name in stage if name in of_layer}
                    if kept is not None:
                        factors = {name: kept[name] for name in chosen}
                    else:
                        factors = _fit(layer, twin, chosen, sensitivity, states, damping, ridge)
                    for name, of_projection in factors.items():
                        set_factors(projection_module(twin, name), of_projection)
                    fitted |= factors
                for pair in states:
                    pair[0].copy_(half(layer, pair[0].to(model.device)))
                    pair[1].copy_(half(twin, pair[1].to(model.device)))
            if file and kept is None and is_main_process():
                save_layer(fitted, file, settings)
    return lite


def attention_half(layer: WhisperEncoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    """The residual stream after attention from that before, both of shape `(batch, frames, d_model)`."""
    return hidden + layer.self_attn(layer.self_attn_layer_norm(hidden))[0]


def mlp_half(layer: WhisperEncoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    """The residual stream after the MLP from that before, both of shape `(batch, frames, d_model)`."""
    return hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))


def projection_input(layer: WhisperEncoderLayer, name: str, hidden: torch.Tensor) -> torch.Tensor:
    """What enters a projection, given the residual stream before its half, both of shape `(batch, frames, width)`."""
    if name == "out_proj":
        with recorded(layer, [name]) as kept:
            attention_half(layer, hidden)
        return kept[name][0]
    if name == "fc1":
        return layer.final_layer_norm(hidden)
    if name == "fc2":
        return layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    return layer.self_attn_layer_norm(hidden)


def _fit(
    layer: WhisperEncoderLayer,
    twin: WhisperEncoderLayer,
    ranks: dict[str, int],
    sensitivity: dict[str, torch.Tensor],
    states: list[torch.Tensor],
    damping: float,
    ridge: float,
) -> dict[str, Factors]:
    """The factors of some projections of a layer that share their inputs."""
    if not ranks:
        return {}
    device = layer.fc1.weight.device
    weights = {name: projection_module(layer, name).weight for name in ranks}
    reduced = {name: reduced_weight(weight.double())[1].to(weight.dtype) for name, weight in weights.items()}
    joint = {name: Moments.zeros(sum(weight.shape), device) for name, weight in reduced.items()}
    for index, pair in enumerate(states):
        stream, drifted = pair[0].to(device), pair[1].to(device)
        ours, theirs = (projection_input(of, next(iter(ranks)), x) for of, x in ((layer, stream), (twin, drifted)))
        for name, weight in reduced.items():
            target = ours @ weight.t()
            if name in ("out_proj", "fc2"):
                target = target + (stream - drifted)
            frames = torch.cat([theirs, target], dim=-1)[:, global_index(index) % STRIDE :: STRIDE]
            joint[name].update(frames.flatten(end_dim=-2))
    of_all = {name: joint[name].of_all_processes() for name in ranks}
    fitted = {}
    for name, rank in shard(ranks.items()):
        dense = projection_module(layer, name)
        inputs = dense.in_features
        mean, covariance = of_all[name].mean, of_all[name].covariance
        fitted[name] = regress(
            dense.weight,
            dense.bias,
            mean[:inputs],
            covariance[:inputs, :inputs],
            mean[inputs:],
            covariance[inputs:, :inputs],
            loss_metric(dense.weight, sensitivity[name].to(device), damping),
            rank,
            ridge,
        )
    return dict(all_gather([(name, Factors(*(part.cpu() for part in found))) for name, found in fitted.items()]))


@contextmanager
def _hidden_states(
    model: WhisperForConditionalGeneration, batches: Sequence[torch.Tensor], folder: Path | None
) -> Iterator[list[torch.Tensor]]:
    """
    What enters the first layer, twice, for the original and the compressed model.

    Yields a list with a tensor of shape (2, batch, frames, d_model) for each batch, on the CPU or in files. They lie in
    the folder, if there is one, where the next run finds those of a run that was killed and writes over them.
    """
    encoder = model.get_encoder()
    entering: list[torch.Tensor] = []
    frames = model.config.max_source_positions * model.config.d_model
    size = 2 * sum(map(len, batches)) * frames * model.dtype.itemsize
    files = folder / f"hidden_states_{global_index(0)}" if folder else Path(tempfile.mkdtemp(prefix="lite-whisper-"))
    try:
        for index, batch in enumerate(batches):
            hidden = layer_inputs(encoder, batch.to(device=model.device, dtype=model.dtype))[0]
            shape = (2, *hidden.shape)
            if size > IN_MEMORY:
                file = files / str(index)
                files.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as reserved:
                    if hasattr(os, "posix_fallocate"):  # a full disk would otherwise end the process by a signal
                        os.posix_fallocate(reserved.fileno(), 0, 2 * hidden.numel() * model.dtype.itemsize)
                stored = torch.from_file(str(file), shared=True, size=2 * hidden.numel(), dtype=model.dtype).view(shape)
            else:
                stored = torch.empty(shape, dtype=model.dtype)
            entering.append(stored.copy_(hidden.expand(shape)))
        yield entering
    finally:
        shutil.rmtree(files, ignore_errors=True)
