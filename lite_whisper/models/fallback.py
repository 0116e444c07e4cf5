"""Fallback: transcribe suspicious outputs again with all positions computed if padding was skipped."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration

MAX_COMPRESSION_RATIO = 2.4  # as in OpenAI's Whisper; a higher ratio indicates repetition
MAX_LENGTH = 0.5  # fraction of the decoder's positions, OpenAI's limit for a window


def needs_fallback(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """
    Finds transcripts that need a fallback because they are repetitive or too long.

    Args:
        model (`PreTrainedModel`): the model that produced the transcripts.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        texts (`Sequence[str]`): transcripts of one window each, without timestamps.

    Returns:
        `list[int]`: indices of these transcripts; empty if the model does not use constant padding.
    """
    if not isinstance(model, LiteWhisperForConditionalGeneration) or not model.get_encoder().uses_constant_padding:
        return []
    limit = MAX_LENGTH * model.config.max_target_positions
    return [
        index
        for index, text in enumerate(texts)
        if compression_ratio(text) > MAX_COMPRESSION_RATIO
        or len(tokenizer(text, add_special_tokens=False).input_ids) >= limit
    ]


@contextmanager
def computing_all_positions(model: PreTrainedModel) -> Iterator[None]:
    """Disables the constant padding of a `LiteWhisperForConditionalGeneration` inside the context."""
    encoder: Any = model.get_encoder()
    encoder.use_constant_padding(False)
    try:
        yield
    finally:
        encoder.use_constant_padding()


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes a text; a hallucination loop exceeds `MAX_COMPRESSION_RATIO`."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
