"""Trace a Whisper into three ONNX graphs: encoder, first decoder step and following decoder steps."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ..modeling_lite_whisper import LiteWhisperEncoder
from ..padding_lite_whisper import end_of_sound, has_constant_padding, positions_to_compute

if TYPE_CHECKING:
    import onnx

OPSET = 18  # supported by all target runtimes
STATES = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")  # cache of a decoder layer, in this order
TEXT_STATES = STATES[:2]  # self-attention; grows with every step
AUDIO_STATES = STATES[2:]  # cross-attention; constant after the first step


@dataclass(frozen=True)
class Graphs:
    """
    The graphs of a Whisper, with the input and output names that runtimes expect.

    Args:
        encoder (`onnx.ModelProto`): maps `input_features` to `last_hidden_state`.
        first (`onnx.ModelProto`): the first decoder step: maps `input_ids` and `encoder_hidden_states` to `logits`, the
            keys and values of self- and cross-attention (`present.*`) and the cross-attention weights
            (`cross_attentions.*`) of each layer.
        following (`onnx.ModelProto`): the following decoder steps: maps `input_ids` and `past_key_values.*` to the same
            outputs, without the keys and values of cross-attention, which do not change.
    """

    encoder: "onnx.ModelProto"
    first: "onnx.ModelProto"
    following: "onnx.ModelProto"


def state_names(prefix: str, layers: int, states: tuple[str, ...] = STATES) -> list[str]:
    """Names of the cached states of all decoder layers, with the prefix `past_key_values` or `present`."""
    return [f"{prefix}.{layer}.{state}" for layer in range(layers) for state in states]


class _Encoder(nn.Module):
    """The encoder; with constant padding, it computes only as many positions as the sound needs."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        # Some runtimes always compute features for 30 s, even if the window of the model is shorter.
        input_features = input_features[:, :, : 2 * encoder.max_source_positions]
        if not (isinstance(encoder, LiteWhisperEncoder) and encoder.uses_constant_padding):
            return encoder(input_features)[0]
        ends, coefficients = end_of_sound(input_features)
        positions: Any = self.positions_needed(ends, coefficients).item()
        torch._check(positions >= encoder.config.constant_padding["margin"])
        torch._check(positions <= encoder.max_source_positions)
        return encoder.with_padding(input_features, positions, coefficients)

    def positions_needed(self, ends: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Branch-free form of `LiteWhisperEncoder.known_padding`: the number of positions to compute."""
        window, margin = self.encoder.max_source_positions, self.encoder.config.constant_padding["margin"]
        positions = positions_to_compute(ends.max(), window, margin)
        return torch.where(has_constant_padding(ends, coefficients), positions.clamp(max=window), window)


class _Decoder(nn.Module):
    """
    The first decoder step, with the output projection.

    Tokens suppressed by the generation settings are masked in the graph, since not every runtime reads these settings.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder: Any = model.get_decoder()
        # Shape (d_model, tokens), as required by the output projection; the tied embedding reads columns of it.
        self.vocabulary: torch.Tensor
        self.register_buffer("vocabulary", model.proj_out.weight.detach().t().contiguous())
        suppressed = torch.zeros(model.config.vocab_size)
        suppressed[model.generation_config.suppress_tokens or []] = torch.finfo(torch.float16).min
        self.register_buffer("suppressed", suppressed)

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.step(input_ids, encoder_hidden_states, EncoderDecoderCache(DynamicCache(), DynamicCache()), STATES)

    def step(
        self,
        input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        cache: EncoderDecoderCache,
        states: tuple[str, ...],
    ) -> tuple[torch.Tensor, ...]:
        tokens = self.vocabulary.index_select(1, input_ids.flatten()).unflatten(1, input_ids.shape).permute(1, 2, 0)
        # Positional, since the name of the cache argument differs between versions of transformers.
        inputs = (None, None, encoder_hidden_states, cache, tokens)
        decoded = self.decoder(*inputs, use_cache=True, output_attentions=True)
        caches: Any = (cache.self_attention_cache.layers, cache.cross_attention_cache.layers)
        present = [
            (text.keys, text.values, audio.keys, audio.values)[: len(states)]
            for text, audio in zip(*caches, strict=True)
        ]
        flat_states = [state for layer_states in present for state in layer_states]
        return decoded.last_hidden_state @ self.vocabulary + self.suppressed, *flat_states, *decoded.cross_attentions


class _DecoderWithPast(_Decoder):
    """The following decoder steps."""

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        text, audio = DynamicCache(), DynamicCache()
        layers = len(past) // len(STATES)
        for layer in range(layers):
            text_key, text_value, audio_key, audio_value = past[len(STATES) * layer : len(STATES) * (layer + 1)]
            text.update(text_key, text_value, layer)
            audio.update(audio_key, audio_value, layer)
        cache = EncoderDecoderCache(text, audio)
        cache.is_updated = dict.fromkeys(range(layers), True)
        # The exporter traces sizes that are read from shape, but not from len().
        unused = past[2].new_zeros(past[2].shape[0], 1, self.decoder.config.d_model)
        return self.step(input_ids, unused, cache, TEXT_STATES)


@torch.no_grad()
def trace(model: WhisperForConditionalGeneration) -> Graphs:
    """
    Traces a model with torch's ONNX exporter. Low-rank pairs stay two matrix products.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, in float32, on the CPU, in
            evaluation mode. It is switched to eager attention.
    """
    model.set_attn_implementation("eager")  # the only implementation that returns attention weights
    config = model.config
    heads, layers, window = config.decoder_attention_heads, config.decoder_layers, config.max_source_positions
    batch, length, past = map(
        torch.export.Dim, ("batch_size", "decoder_sequence_length", "past_decoder_sequence_length")
    )
    frames = torch.export.Dim("frames", min=2 * window)
    tokens, states = torch.ones(2, 3, dtype=torch.long), torch.zeros(2, window, config.d_model)
    # Batch size two and sound that ends before the window: the exporter would fix sizes that are 1 or equal.
    features = torch.zeros(2, config.num_mel_bins, 2 * window + 1)
    features[:, :, : window // 4] = torch.rand(features[:, :, : window // 4].shape)
    lengths = {"decoder": 5, "encoder": window}
    all_states = STATES * layers
    # Separate tensors: the exporter merges inputs that are the same tensor.
    past_states = [
        torch.zeros(2, heads, lengths[state.partition(".")[0]], config.d_model // heads) for state in all_states
    ]
    axes = [{0: batch, 2: past} if state in TEXT_STATES else {0: batch} for state in all_states]
    attentions = [f"cross_attentions.{layer}" for layer in range(layers)]
    text = {"input_ids": {0: batch, 1: length}}
    encoder: Any = _Encoder(model.get_encoder())
    return Graphs(
        _export(
            encoder, (features,), {"input_features": {0: batch, 2: frames}}, ["input_features"], ["last_hidden_state"]
        ),
        _export(
            _Decoder(model),
            (tokens, states),
            {**text, "encoder_hidden_states": {0: batch}},
            ["input_ids", "encoder_hidden_states"],
            ["logits", *state_names("present", layers), *attentions],
        ),
        _export(
            _DecoderWithPast(model),
            (tokens, past_states),
            {**text, "past": axes},
            ["input_ids", *state_names("past_key_values", layers)],
            ["logits", *state_names("present", layers, TEXT_STATES), *attentions],
        ),
    )


def _export(
    module: nn.Module, example: tuple[Any, ...], axes: dict[str, Any], inputs: list[str], outputs: list[str]
) -> "onnx.ModelProto":
    """Exports a module as an ONNX graph."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            dynamic_shapes=axes,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # The exporter's metadata contains file paths of this machine.
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        part.ClearField("metadata_props")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of the exporter about its own operations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
