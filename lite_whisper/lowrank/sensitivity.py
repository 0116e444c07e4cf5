"""Sensitivity: how much the recognition loss feels an error in each projection's output, from one backward pass."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import tqdm
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ..common.errors import InputError
from ..common.processes import all_gather, all_reduce, global_index, num_processes
from ..common.tensor_files import Checkpoint
from ..configuration_lite_whisper import PROJECTIONS
from ..models.layers import layer_inputs, projection_module, recorded, transcripts
from .moments import OBSERVED_SIDE, EncoderMoments, Moments, empty_moments

WINDOWS = 16  # that are kept; on whisper-base 8 were as good for bias correction as 64


@dataclass
class Sensitivities:
    """
    How the loss reacts to errors in every projection, and what was spoken.

    Args:
        layers (`list[dict[str, torch.Tensor]]` of shape `(r, r)`, r = min(in_features, out_features)): one dict per
            encoder layer, from projection to E[g g^T]; g is the gradient of the loss at the projection's output, summed
            over frames and divided by their number; for a projection with more outputs than inputs, of W^T g instead.
        moments (`EncoderMoments`): of the same frames as those of `collect_moments`, each weighted by the squared norm
            of the gradient at what is observed: what the loss does not feel, padding for one, hardly counts.
        languages (`Counter[str]`): the number of windows in each language, as the model detects it; of an English-only
            model empty.
        windows (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`):
            The first log-mel features, on which a compressed model can be compared with its base, on the CPU.
    """

    layers: list[dict[str, torch.Tensor]]
    moments: EncoderMoments
    languages: Counter[str]
    windows: torch.Tensor


def collect_sensitivities(
    model: WhisperForConditionalGeneration,
    batches: Sequence[torch.Tensor],
    seed: int = 0,
    num_windows: int | None = None,
    draws: int = 1,
    checkpoint: "Checkpoint | None" = None,
) -> Sensitivities:
    """
    The second moments of the loss gradient, the true Fisher information, from audio without transcripts.

    The model transcribes the audio greedily. For every token it predicts, the gradient of the log-likelihood has the
    covariance diag(p) - p p^T in the logits, which sampled labels estimate with a few large and many tiny values; here
    it is drawn as its square root times Gaussian noise, which has the same covariance and far less spread. One backward
    pass carries all tokens of a window, whose draws are independent, down to the projections; several passes with new
    noise make the estimate steadier.

    Time: two forward passes of the encoder, the greedy transcripts, and for every draw about two forward passes.
    Memory: ten d x d matrices in float64 per layer (4.2 GB for large-v3) and, for each window of a batch, 1.6 GB:
    inputs of all encoder layers, activations of one and of the decoder. All processes get the same.

    Args:
        model (`WhisperForConditionalGeneration`): multilingual, English-only or distilled.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        seed (`int`, *optional*, defaults to 0): of the Gaussian noise, which each batch has of its own.
        num_windows (`int`, *optional*): the expected number of windows, for the progress bar.
        draws (`int`, *optional*, defaults to 1): backward passes for each window.
        checkpoint (`Checkpoint`, *optional*): keeps the sums meanwhile; of a pass that was interrupted it has a part.

    Returns:
        `Sensitivities`: of every projection, in float64.

    Raises:
        InputError: there was no audio, or a gradient is NaN or infinite.
    """
    encoder = model.get_encoder()
    sums, moments = [_empty_sums(layer) for layer in encoder.layers], empty_moments(encoder.layers)
    weighted = {f"{i}.{name}": m for i, of_layer in enumerate(moments) for name, m in of_layer.items()}
    named = {f"{i}.{name}": total for i, of_layer in enumerate(sums) for name, total in of_layer.items()}
    named |= {f"{name}.{part}": getattr(m, part) for name, m in weighted.items() for part in ("mean", "scatter")}
    kept = checkpoint.restore(named) if checkpoint else {}
    done = {"batches": 0, "windows": 0, "frames": 0, "weights": {}} | kept.get("done", {})
    for name, count in done["weights"].items():
        weighted[name].count = count
    languages = Counter(kept.get("languages", {}))
    training = model.training
    model.eval()
    try:
        with tqdm(desc="sensitivity", unit="window", total=num_windows, initial=done["windows"]) as progress:
            for batch in itertools.islice(batches, done["batches"], None):
                features = batch.to(device=model.device, dtype=model.dtype)
                *inputs, last = layer_inputs(encoder, features)
                generator = torch.Generator(model.device).manual_seed(noise_seed(seed, global_index(done["batches"])))
                gradients, spoken = _output_gradients(model, last, generator, draws)
                layers = zip(encoder.layers, inputs, sums, moments, strict=True)
                for layer, given, totals, of_layer in reversed(list(layers)):
                    gradients = _add_layer(layer, given, gradients, totals, of_layer)
                if not all(gradient.isfinite().all() for gradient in gradients):
                    raise InputError("gradients are NaN or infinite; compute in float32", setting="dtype")
                languages.update(spoken)
                progress.update(len(batch))
                done = {
                    "batches": done["batches"] + 1,
                    "windows": done["windows"] + len(batch),
                    "frames": done["frames"] + last.shape[0] * last.shape[1],
                    "weights": {name: m.count for name, m in weighted.items()},
                }
                if checkpoint:
                    checkpoint.save(named, {"done": done, "languages": languages})
    finally:
        model.train(training)
    passes = draws * int(all_reduce(torch.tensor(done["frames"], device=model.device)))
    if not passes:
        raise InputError("there is no calibration audio; name a dataset with audio", setting="dataset")
    return Sensitivities(
        [{name: all_reduce(total).div_(passes) for name, total in of_layer.items()} for of_layer in sums],
        [{name: m.all_reduced() for name, m in of_layer.items()} for of_layer in moments],
        Counter(language for part in all_gather([languages]) for language in part.elements()),
        torch.cat(all_gather(_first_windows(batches))),
    )


def _first_windows(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """This process's share of the windows to keep, one by one."""
    windows = itertools.chain.from_iterable(batch.cpu().split(1) for batch in batches)
    return list(itertools.islice(windows, math.ceil(WINDOWS / num_processes())))


def _empty_sums(layer: WhisperEncoderLayer) -> dict[str, torch.Tensor]:
    """For the second moments of the gradients at the narrow side of each projection."""
    sides = {name: min(projection_module(layer, name).weight.shape) for name in PROJECTIONS}
    device = layer.fc1.weight.device
    return {name: torch.zeros(n, n, dtype=torch.float64, device=device) for name, n in sides.items()}


def noise_seed(seed: int, batch: int) -> int:
    """The seed of a batch's noise, which does not depend on the process that draws it."""
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


def _output_gradients(
    model: WhisperForConditionalGeneration, last: torch.Tensor, generator: torch.Generator, draws: int
) -> tuple[list[torch.Tensor], list[str]]:
    """
    Random gradients at the last layer's output, of its shape, with the Fisher information as covariance.

    Also returns the languages that are spoken.
    """
    with torch.enable_grad():
        last = last.requires_grad_()
        hidden = model.get_encoder().layer_norm(last)
    tokens, predicted, languages = transcripts(model, hidden.detach())
    with torch.enable_grad():
        logits = model(encoder_outputs=(hidden,), decoder_input_ids=tokens).logits[predicted].float()
    probabilities = logits.detach().softmax(dim=-1)
    root = probabilities.sqrt()
    gradients: list[torch.Tensor] = []
    for _ in range(draws):
        noise = torch.randn(logits.shape, generator=generator, device=logits.device)
        noise = root * noise - probabilities * (root * noise).sum(dim=-1, keepdim=True)
        gradients += torch.autograd.grad(logits, last, noise, retain_graph=True)
    return gradients, languages


@torch.enable_grad()
def _add_layer(
    layer: WhisperEncoderLayer,
    given: torch.Tensor,
    gradients: list[torch.Tensor],
    totals: dict[str, torch.Tensor],
    moments: dict[str, Moments],
) -> list[torch.Tensor]:
    """
    Adds the second moments of one layer's gradients to `totals`, and its frames, by the gradients, to `moments`.

    Returns the gradients at the layer's input.
    """
    with recorded(layer, PROJECTIONS) as kept:
        given = given.requires_grad_()
        result = layer(given, None)
    # Where W has more rows than columns, W^T g is the gradient at the input, which fc1 has for itself.
    shapes = {name: projection_module(layer, name).weight.shape for name in kept}
    narrow = {name: kept[name][rows <= columns] for name, (rows, columns) in shapes.items()}
    observed = {name: kept[name][side == "output"] for name, side in OBSERVED_SIDE.items()}
    below = []
    for gradient in gradients:
        at_input, *felt = torch.autograd.grad(
            result, [given, *observed.values(), *narrow.values()], gradient, retain_graph=gradient is not gradients[-1]
        )
        below.append(at_input)
        at_observed, at_narrow = felt[: len(observed)], felt[len(observed) :]
        for (projection, frames), at_frames in zip(observed.items(), at_observed, strict=True):
            weights = at_frames.float().square().sum(dim=-1).flatten()
            moments[projection].update(frames.detach().flatten(end_dim=-2), weights)
        for projection, at_side in zip(narrow, at_narrow, strict=True):
            rows = at_side.flatten(end_dim=-2).to(torch.promote_types(at_side.dtype, torch.float32))
            totals[projection].add_(rows.t() @ rows)
    return below
