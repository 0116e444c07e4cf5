"""A Whisper as three ONNX graphs: the encoder, the decoder at the first step, and at those that follow."""

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

OPSET = 18  # what every runtime knows that takes these files
STATES = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")  # that a decoder layer keeps, in this order
OF_TEXT = STATES[:2]  # those that every step adds to; the others stay


@dataclass(frozen=True)
class Graphs:
    """
    The parts of a Whisper, with the names of inputs and outputs that runtimes look for.

    Args:
        encoder (`onnx.ModelProto`): `input_features` to `last_hidden_state`.
        first (`onnx.ModelProto`): the decoder: `input_ids` and `encoder_hidden_states` to `logits`, for each layer the
            keys and values of text and audio (`present.*`), and the weights of its attention to the audio
            (`cross_attentions.*`).
        following (`onnx.ModelProto`): the decoder: `input_ids` and `past_key_values.*` to the same, without the keys
            and values of audio, which stay as they are.
    """

    encoder: "onnx.ModelProto"
    first: "onnx.ModelProto"
    following: "onnx.ModelProto"


def state_names(prefix: str, layers: int, states: tuple[str, ...] = STATES) -> list[str]:
    """The names of what the decoder layers keep, `past_key_values` or `present` before them."""
    return [f"{prefix}.{layer}.{state}" for layer in range(layers) for state in states]


class _Encoder(nn.Module):
    """The encoder; one that knows its padding computes as many positions as the sound needs, whatever the features."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        # Some runtimes make features of 30 s for every Whisper, whatever its window.
        input_features = input_features[:, :, : 2 * encoder.max_source_positions]
        if not (isinstance(encoder, LiteWhisperEncoder) and encoder.uses_constant_padding):
            return encoder(input_features)[0]
        ends, coefficients = end_of_sound(input_features)
        positions: Any = self.positions_needed(ends, coefficients).item()
        torch._check(positions >= encoder.config.constant_padding["margin"])
        torch._check(positions <= encoder.max_source_positions)
        return encoder.with_padding(input_features, positions, coefficients)

    def positions_needed(self, ends: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """The positions of `LiteWhisperEncoder.known_padding`, or all of them, without a branch."""
        window, margin = self.encoder.max_source_positions, self.encoder.config.constant_padding["margin"]
        positions = positions_to_compute(ends.max(), window, margin)
        return torch.where(has_constant_padding(ends, coefficients), positions.clamp(max=window), window)


class _Decoder(nn.Module):
    """
    The decoder and its head, at the first step.

    Tokens that the generation settings never allow get no chance here, as not every runtime reads these settings.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder: Any = model.get_decoder()
        # Of shape (d_model, tokens), as the product over the vocabulary wants it: the embedding, which is the same
        # matrix, reads columns of it.
        self.vocabulary: torch.Tensor
        self.register_buffer("vocabulary", model.proj_out.weight.detach().t().contiguous())
        never = torch.zeros(model.config.vocab_size)
        never[model.generation_config.suppress_tokens or []] = torch.finfo(torch.float16).min
        self.register_buffer("never", never)

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
        # By position, as the name of the cache has changed between versions of transformers.
        given = (None, None, encoder_hidden_states, cache, tokens)
        decoded = self.decoder(*given, use_cache=True, output_attentions=True)
        caches: Any = (cache.self_attention_cache.layers, cache.cross_attention_cache.layers)
        present = [
            (text.keys, text.values, audio.keys, audio.values)[: len(states)]
            for text, audio in zip(*caches, strict=True)
        ]
        kept = [state for of_layer in present for state in of_layer]
        return decoded.last_hidden_state @ self.vocabulary + self.never, *kept, *decoded.cross_attentions


class _DecoderWithPast(_Decoder):
    """The same, at the steps that follow."""

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        text, audio = DynamicCache(), DynamicCache()
        layers = len(past) // len(STATES)
        for layer in range(layers):
            of_layer = past[len(STATES) * layer : len(STATES) * (layer + 1)]
            text.update(of_layer[0], of_layer[1], layer)
            audio.update(of_layer[2], of_layer[3], layer)
        cache = EncoderDecoderCache(text, audio)
        cache.is_updated = dict.fromkeys(range(layers), True)
        # Its size is read as a shape, which the exporter follows; it does not follow len().
        unread = past[2].new_zeros(past[2].shape[0], 1, self.decoder.config.d_model)
        return self.step(input_ids, unread, cache, OF_TEXT)


@torch.no_grad()
def trace(model: WhisperForConditionalGeneration) -> Graphs:
    """
    Exports a model by torch's own exporter. Pairs stay two products.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, in fp32, on the CPU, in evaluation
            mode. It attends by plain operations from then on.
    """
    model.set_attn_implementation("eager")  # which alone tells what the decoder attends to
    config = model.config
    heads, layers, window = config.decoder_attention_heads, config.decoder_layers, config.max_source_positions
    batch, length, past = map(
        torch.export.Dim, ("batch_size", "decoder_sequence_length", "past_decoder_sequence_length")
    )
    frames = torch.export.Dim("frames", min=2 * window)
    tokens, states = torch.ones(2, 3, dtype=torch.long), torch.zeros(2, window, config.d_model)
    # Two channels of sound, and another end of it: whatever is one or the same, the exporter takes for constant.
    features = torch.zeros(2, config.num_mel_bins, 2 * window + 1)
    features[:, :, : window // 4] = torch.rand(features[:, :, : window // 4].shape)
    lengths = {"decoder": 5, "encoder": window}
    each = STATES * layers  # one tensor each: the exporter takes the same for one input
    kept = [torch.zeros(2, heads, lengths[state.partition(".")[0]], config.d_model // heads) for state in each]
    axes = [{0: batch, 2: past} if state in OF_TEXT else {0: batch} for state in each]
    attended = [f"cross_attentions.{layer}" for layer in range(layers)]
    text = {"input_ids": {0: batch, 1: length}}
    encoder: Any = _Encoder(model.get_encoder())
    return Graphs(
        _exported(
            encoder, (features,), {"input_features": {0: batch, 2: frames}}, ["input_features"], ["last_hidden_state"]
        ),
        _exported(
            _Decoder(model),
            (tokens, states),
            {**text, "encoder_hidden_states": {0: batch}},
            ["input_ids", "encoder_hidden_states"],
            ["logits", *state_names("present", layers), *attended],
        ),
        _exported(
            _DecoderWithPast(model),
            (tokens, kept),
            {**text, "past": axes},
            ["input_ids", *state_names("past_key_values", layers)],
            ["logits", *state_names("present", layers, OF_TEXT), *attended],
        ),
    )


def _exported(
    module: nn.Module, example: tuple[Any, ...], axes: dict[str, Any], inputs: list[str], outputs: list[str]
) -> "onnx.ModelProto":
    """The ONNX graph of a module."""
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
    # What the exporter notes of every node names files of this machine.
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
    """Hushes the exporter, which warns of what it does itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
