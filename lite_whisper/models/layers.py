"""Access to the projections and activations of a Whisper, and to its own transcripts as decoder inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from ..configuration_lite_whisper import LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperEncoder


def projection_module(layer: WhisperEncoderLayer, projection: str) -> nn.Linear:
    """The module of one projection (`q_proj`, ..., `fc2`) in an encoder layer."""
    return getattr(layer if projection in ("fc1", "fc2") else layer.self_attn, projection)


def as_lite_whisper(encoder: WhisperEncoder) -> LiteWhisperEncoder:
    """Converts a stock encoder to a dense `LiteWhisperEncoder` that shares its weights."""
    lite = LiteWhisperEncoder(LiteWhisperConfig(**encoder.config.to_dict()))
    lite.load_state_dict(encoder.state_dict(), assign=True)
    return lite.train(encoder.training)


@contextmanager
def recorded(
    layer: WhisperEncoderLayer, names: Sequence[str]
) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Records the inputs and outputs of a layer's projections inside the context."""
    records: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        return projection_module(layer, name).register_forward_hook(
            lambda module, inputs, output: records.__setitem__(name, (inputs[0], output))
        )

    hooks = [record(name) for name in names]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def layer_inputs(encoder: WhisperEncoder, features: torch.Tensor) -> list[torch.Tensor]:
    """
    The inputs of every encoder layer and, last, of the final layer norm.

    Args:
        encoder (`WhisperEncoder`): encoder of a base or compressed model.
        features (`torch.Tensor` of shape `(batch, mel_bins, mel_frames)`): log-mel features.

    Returns:
        `list[torch.Tensor]`: each of shape `(batch, frames, d_model)`.
    """
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


@torch.no_grad()
def transcripts(
    model: WhisperForConditionalGeneration, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """
    Transcribes windows by greedy decoding and returns the transcripts as decoder inputs.

    Args:
        model (`WhisperForConditionalGeneration`): a multilingual or English-only model.
        hidden (`torch.Tensor` of shape `(batch, frames, d_model)`): output of its encoder.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, list[str]]`: the tokens, of shape `(batch, length)`; a mask of the same shape
        that is True at positions whose next token is text or its end; the detected language of each window (an empty
        list for an English-only model).
    """
    settings: Any = model.generation_config
    encoded = BaseModelOutput(last_hidden_state=hidden)
    mask = torch.ones(len(hidden), 2 * hidden.shape[1], dtype=torch.long, device=hidden.device)  # of mel frames
    # After a timestamp `generate` would continue from the features, which it does not have here.
    timestamps = range(settings.no_timestamps_token_id + 1, model.config.vocab_size)
    greedy: dict[str, Any] = {
        "encoder_outputs": encoded,
        "attention_mask": mask,
        "suppress_tokens": [*(settings.suppress_tokens or []), *timestamps],
        "num_beams": 1,
        "do_sample": False,
    }
    prefix = torch.full((len(hidden), 1), settings.decoder_start_token_id, device=hidden.device)
    spoken: list[str] = []
    if getattr(settings, "is_multilingual", False):
        languages = model.detect_language(encoder_outputs=encoded).to(hidden.device)
        task = torch.full_like(languages, settings.task_to_id["transcribe"])
        prefix = torch.cat([prefix, languages[:, None], task[:, None]], dim=1)
        names = {token: name.strip("<|>") for name, token in settings.lang_to_id.items()}
        spoken = [names[token] for token in languages.tolist()]
        generated = model.generate(language=spoken, task="transcribe", **greedy)
    else:
        generated = model.generate(**greedy)
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
    return tokens, (positions >= prefix.shape[1] - 1) & (positions < ends_at), spoken
