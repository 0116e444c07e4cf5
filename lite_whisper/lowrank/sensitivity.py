"""Sensitivity of the recognition loss to errors in each projection's output, from one backward pass."""

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

NUM_STORED_WINDOWS = 16  # for bias correction; on whisper-base, 8 gave the same results as 64


@dataclass
class Sensitivities:
    """
    Sensitivities of all encoder projections, with gradient-weighted moments and the detected languages.

    Args:
        layers (`list[dict[str, torch.Tensor]]` of shape `(r, r)`, r = min(in_features, out_features)):
            One dict per encoder layer that maps each projection to E[g g^T], the mean over frames, where g is the
            gradient of the loss at the projection's output. For a projection with more outputs than inputs, g is
            replaced by W^T g.
        moments (`EncoderMoments`):
            The moments of the same frames as in `collect_moments`, each weighted by the squared norm of the gradient at
            the observed side. Frames to which the loss is insensitive, such as padding, get little weight.
        languages (`Counter[str]`): the number of windows per detected language; empty for English-only models.
        windows (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`):
            The log-mel features of the first windows on the CPU, used for bias correction.
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
    checkpoint: "Checkpoint | None" = None,
) -> Sensitivities:
    """
    Collects the second moments of the loss gradient (the true Fisher information) from audio without transcripts.

    The model transcribes the audio with greedy decoding. For each predicted token, the gradient of the log-likelihood
    with respect to the logits has covariance diag(p) - p p^T. Instead of sampling labels, which gives a few large and
    many tiny values, this function multiplies a square root of this matrix by Gaussian noise: same covariance, much
    lower variance. The noise is independent for each token, so one backward pass per window carries all of its tokens
    down to the projections.

    Time: greedy transcription, two forward passes of the encoder, and a backward pass that costs about two more.

    Memory: ten d x d matrices in float64 per layer (4.2 GB for large-v3), plus 1.6 GB per window of a batch for the
    inputs of all encoder layers and the activations of one layer and of the decoder. In a distributed run all processes
    return the same result.

    Args:
        model (`WhisperForConditionalGeneration`): multilingual, English-only or distilled.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        seed (`int`, *optional*, defaults to 0): the seed of the Gaussian noise; each batch gets its own derived seed.
        num_windows (`int`, *optional*): the expected number of windows, for the progress bar.
        checkpoint (`Checkpoint`, *optional*): stores intermediate sums so that an interrupted pass can resume.

    Returns:
        `Sensitivities`: the sensitivities of all projections, in float64.

    Raises:
        InputError: there is no audio, or a gradient is NaN or infinite.
    """
    encoder = model.get_encoder()
    sums, moments = [_empty_sums(layer) for layer in encoder.layers], empty_moments(encoder.layers)
    weighted = {f"{i}.{name}": m for i, layer_moments in enumerate(moments) for name, m in layer_moments.items()}
    named = {f"{i}.{name}": total for i, layer_sums in enumerate(sums) for name, total in layer_sums.items()}
    named |= {f"{name}.{part}": getattr(m, part) for name, m in weighted.items() for part in ("mean", "scatter")}
    restored = checkpoint.restore(named) if checkpoint else {}
    done = {"batches": 0, "windows": 0, "frames": 0, "weights": {}} | restored.get("done", {})
    for name, count in done["weights"].items():
        weighted[name].count = count
    languages = Counter(restored.get("languages", {}))
    training = model.training
    model.eval()
    try:
        with tqdm(desc="sensitivity", unit="window", total=num_windows, initial=done["windows"]) as progress:
            for batch in itertools.islice(batches, done["batches"], None):
                features = batch.to(device=model.device, dtype=model.dtype)
                *inputs, last = layer_inputs(encoder, features)
                generator = torch.Generator(model.device).manual_seed(noise_seed(seed, global_index(done["batches"])))
                gradient, detected = _output_gradient(model, last, generator)
                layers = zip(encoder.layers, inputs, sums, moments, strict=True)
                for layer, layer_input, layer_sums, layer_moments in reversed(list(layers)):
                    gradient = _add_layer(layer, layer_input, gradient, layer_sums, layer_moments)
                if not gradient.isfinite().all():
                    raise InputError("gradients are NaN or infinite; use float32", setting="dtype")
                languages.update(detected)
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
    frames = int(all_reduce(torch.tensor(done["frames"], device=model.device)))
    if not frames:
        raise InputError("no calibration audio found; pass a dataset that contains audio", setting="dataset")
    return Sensitivities(
        [{name: all_reduce(total).div_(frames) for name, total in layer_sums.items()} for layer_sums in sums],
        [{name: m.all_reduced() for name, m in layer_moments.items()} for layer_moments in moments],
        Counter(language for part in all_gather([languages]) for language in part.elements()),
        torch.cat(all_gather(_first_windows(batches))),
    )


def _first_windows(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """This process's share of the stored windows, one tensor per window."""
    windows = itertools.chain.from_iterable(batch.cpu().split(1) for batch in batches)
    return list(itertools.islice(windows, math.ceil(NUM_STORED_WINDOWS / num_processes())))


def _empty_sums(layer: WhisperEncoderLayer) -> dict[str, torch.Tensor]:
    """Zero matrices for the gradients' second moments at the side of each projection with fewer features."""
    sides = {name: min(projection_module(layer, name).weight.shape) for name in PROJECTIONS}
    device = layer.fc1.weight.device
    return {name: torch.zeros(n, n, dtype=torch.float64, device=device) for name, n in sides.items()}


def noise_seed(seed: int, batch: int) -> int:
    """The noise seed of a batch, independent of the process that handles it."""
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


def _output_gradient(
    model: WhisperForConditionalGeneration, last: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, list[str]]:
    """
    Draws a random gradient at the last layer's output whose covariance is the Fisher information.

    Returns the gradient, of the shape of `last`, and the detected languages.
    """
    with torch.enable_grad():
        last = last.requires_grad_()
        hidden = model.get_encoder().layer_norm(last)
    tokens, predicted, languages = transcripts(model, hidden.detach())
    with torch.enable_grad():
        logits = model(encoder_outputs=(hidden,), decoder_input_ids=tokens).logits[predicted].float()
    probabilities = logits.detach().softmax(dim=-1)
    root = probabilities.sqrt()
    noise = torch.randn(logits.shape, generator=generator, device=logits.device)
    noise = root * noise - probabilities * (root * noise).sum(dim=-1, keepdim=True)
    (gradient,) = torch.autograd.grad(logits, last, noise)
    return gradient, languages


@torch.enable_grad()
def _add_layer(
    layer: WhisperEncoderLayer,
    layer_input: torch.Tensor,
    gradient: torch.Tensor,
    sums: dict[str, torch.Tensor],
    moments: dict[str, Moments],
) -> torch.Tensor:
    """
    Adds the second moments of a layer's gradients to `sums`, and its gradient-weighted frames to `moments`.

    Returns the gradient at the layer's input.
    """
    with recorded(layer, PROJECTIONS) as activations:
        layer_input = layer_input.requires_grad_()
        output = layer(layer_input, None)
    # If W has more rows than columns, W^T g is the gradient at the input. Only fc1 has this shape, and it shares its
    # input with no other projection.
    shapes = {name: projection_module(layer, name).weight.shape for name in activations}
    narrow = {name: activations[name][rows <= columns] for name, (rows, columns) in shapes.items()}
    observed = {name: activations[name][side == "output"] for name, side in OBSERVED_SIDE.items()}
    gradient_at_input, *gradients = torch.autograd.grad(
        output, [layer_input, *observed.values(), *narrow.values()], gradient
    )
    at_observed, at_narrow = gradients[: len(observed)], gradients[len(observed) :]
    for (projection, frames), frame_gradients in zip(observed.items(), at_observed, strict=True):
        weights = frame_gradients.float().square().sum(dim=-1).flatten()
        moments[projection].update(frames.detach().flatten(end_dim=-2), weights)
    for projection, narrow_gradients in zip(narrow, at_narrow, strict=True):
        dtype = torch.promote_types(narrow_gradients.dtype, torch.float32)
        rows = narrow_gradients.flatten(end_dim=-2).to(dtype)
        sums[projection].add_(rows.t() @ rows)
    return gradient_at_input
