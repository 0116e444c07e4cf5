"""Sensitivity: how much the recognition loss feels an error in each projection's output, from one backward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from ..configuration_lite_whisper import PROJECTIONS
from ..errors import InputError
from .calibration import projection_module

Sensitivities = list[dict[str, torch.Tensor]]
"""
One dict per encoder layer, from projection to E[g g^T], g the gradient of the loss at the projection's output, summed
over frames and divided by their number; for a projection with more outputs than inputs, of W^T g instead.
"""


def collect_sensitivities(
    model: WhisperForConditionalGeneration,
    batches: Iterable[torch.Tensor],
    seed: int = 0,
    num_samples: int | None = None,
) -> Sensitivities:
    """
    The second moments of the loss gradient, the true Fisher information, from audio without transcripts.

    The model transcribes the audio greedily. For every token it predicts, the gradient of the log-likelihood has the
    covariance diag(p) - p p^T in the logits, which sampled labels estimate with a few large and many tiny values; here
    it is drawn as its square root times Gaussian noise, which has the same covariance and far less spread. One backward
    pass carries all tokens of a batch, whose draws are independent, down to the projections.

    Time: about six forward passes. Memory: six d x d matrices per layer (1.3 GB in fp32 for large-v3) and, for each
    window of a batch, the inputs of all layers (0.25 GB) and the activations of one layer with its gradients.

    Args:
        model (`WhisperForConditionalGeneration`): multilingual, English-only or distilled.
        batches (`Iterable[torch.Tensor]`): log-mel features, shape = (batch, mel bins, mel frames).
        seed (`int`): of the Gaussian noise.
        num_samples (`int`, *optional*): the expected number of windows, for the progress bar.

    Raises:
        InputError: there was no audio, or a gradient is NaN or infinite.
    """
    encoder = model.get_encoder()
    dtype = torch.promote_types(model.dtype, torch.float32)
    sums: Sensitivities = []
    for layer in encoder.layers:
        sides = {name: min(projection_module(layer, name).weight.shape) for name in PROJECTIONS}
        sums.append({name: torch.zeros(n, n, dtype=dtype, device=model.device) for name, n in sides.items()})
    generator = torch.Generator(model.device).manual_seed(seed)
    frames = 0
    training = model.training
    model.eval()
    try:
        with tqdm(desc="sensitivity", unit="window", total=num_samples) as progress:
            for batch in batches:
                features = batch.to(device=model.device, dtype=model.dtype)
                *inputs, last = layer_inputs(encoder, features)
                gradient = _output_gradient(model, features, last, generator)
                for layer, given, totals in zip(
                    reversed(encoder.layers), reversed(inputs), reversed(sums), strict=True
                ):
                    gradient = _add_layer(layer, given, gradient, totals)
                if not gradient.isfinite().all():
                    raise InputError("gradients are NaN or infinite; use --dtype float32")
                frames += last.shape[0] * last.shape[1]
                progress.update(len(batch))
    finally:
        model.train(training)
    if not frames:
        raise InputError("there is no calibration audio; name a dataset with audio")
    return [{name: total / frames for name, total in of_layer.items()} for of_layer in sums]


@torch.no_grad()
def layer_inputs(encoder: WhisperEncoder, features: torch.Tensor) -> list[torch.Tensor]:
    """What enters each encoder layer and, last, the final layer norm; each of shape = (batch, frames, d_model)."""
    inputs: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
        for module in (*encoder.layers, encoder.layer_norm)
    ]
    try:
        encoder(features)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _output_gradient(
    model: WhisperForConditionalGeneration, features: torch.Tensor, last: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """A random gradient, with the Fisher information as covariance, at the last layer's output; of the same shape."""
    tokens, predicted = _transcripts(model, features)
    last = last.requires_grad_()
    with torch.enable_grad():
        encoder_output = model.get_encoder().layer_norm(last)
        logits = model(encoder_outputs=(encoder_output,), decoder_input_ids=tokens).logits[predicted].float()
    probabilities = logits.detach().softmax(dim=-1)
    root = probabilities.sqrt()
    noise = torch.randn(logits.shape, generator=generator, device=logits.device)
    noise = root * noise - probabilities * (root * noise).sum(dim=-1, keepdim=True)
    (gradient,) = torch.autograd.grad(logits, last, noise)
    return gradient


@torch.no_grad()
def _transcripts(model: WhisperForConditionalGeneration, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The model's own greedy transcripts as decoder inputs.

    Returns:
        Tokens, shape = (batch, length), and where in them the next token is a prediction of text or its end, of the
        same shape.
    """
    settings: Any = model.generation_config
    greedy: dict[str, Any] = {"num_beams": 1, "do_sample": False, "attention_mask": torch.ones_like(features[:, 0])}
    prefix = torch.full((len(features), 1), settings.decoder_start_token_id, device=features.device)
    if getattr(settings, "is_multilingual", False):
        languages = model.detect_language(features).to(features.device)
        task = torch.full_like(languages, settings.task_to_id["transcribe"])
        prefix = torch.cat([prefix, languages[:, None], task[:, None]], dim=1)
        names = {token: name.strip("<|>") for name, token in settings.lang_to_id.items()}
        spoken = [names[token] for token in languages.tolist()]
        generated = model.generate(features, language=spoken, task="transcribe", **greedy)
    else:
        generated = model.generate(features, **greedy)
    no_timestamps = torch.full_like(prefix[:, :1], settings.no_timestamps_token_id)
    prefix = torch.cat([prefix, no_timestamps], dim=1)
    rows, ends = [], []
    for start, row in zip(prefix, generated, strict=True):
        text = row[row < model.config.eos_token_id]  # all special tokens and timestamps come after it
        text = text[: model.config.max_target_positions - len(start)]
        rows.append(torch.cat([start, text]))
        ends.append(len(rows[-1]))
    tokens = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id or 0)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    ends_at = torch.tensor(ends, device=tokens.device)[:, None]
    return tokens, (positions >= prefix.shape[1] - 1) & (positions < ends_at)


@torch.enable_grad()
def _add_layer(
    layer: WhisperEncoderLayer, given: torch.Tensor, gradient: torch.Tensor, totals: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Adds the second moments of one layer's gradients to `totals`; returns the gradient at the layer's input."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(projection: str) -> torch.utils.hooks.RemovableHandle:
        return projection_module(layer, projection).register_forward_hook(
            lambda module, inputs, output: outputs.__setitem__(projection, output)
        )

    hooks = [keep(projection) for projection in PROJECTIONS]
    try:
        given = given.requires_grad_()
        result = layer(given, None)
    finally:
        for hook in hooks:
            hook.remove()
    below, *gradients = torch.autograd.grad(result, [given, *outputs.values()], gradient)
    for projection, at_output in zip(outputs, gradients, strict=True):
        weight = projection_module(layer, projection).weight.detach()
        at_output = at_output.flatten(end_dim=-2)
        if weight.shape[0] > weight.shape[1]:
            at_output = at_output @ weight
        at_output = at_output.to(totals[projection].dtype)
        totals[projection].addmm_(at_output.t(), at_output)
    return below
