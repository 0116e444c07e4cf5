"""What looks broken where padding was taken for constant is transcribed once more, with all positions computed."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration

COMPRESSION_RATIO = 2.4  # as in OpenAI's Whisper, where more than that is a repetition
LONGEST = 0.5  # of the decoder's positions; where OpenAI's Whisper ends a window


def needs_fallback(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """
    Which transcripts deserve a second try: those that repeat themselves, and those that did not come to an end.

    Args:
        model (`PreTrainedModel`): that wrote them, each of one window.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        texts (`Sequence[str]`): without timestamps.

    Returns:
        `list[int]`: their places; none where the model computes all positions anyway.
    """
    if not isinstance(model, LiteWhisperForConditionalGeneration) or not model.get_encoder().uses_constant_padding:
        return []
    limit = LONGEST * model.config.max_target_positions
    return [
        place
        for place, text in enumerate(texts)
        if _compression_ratio(text) > COMPRESSION_RATIO
        or len(tokenizer(text, add_special_tokens=False).input_ids) >= limit
    ]


@contextmanager
def computing_all_positions(model: PreTrainedModel) -> Iterator[None]:
    """Lets a LiteWhisper that takes padding for constant compute all positions while the context lasts."""
    encoder: Any = model.get_encoder()
    encoder.use_constant_padding(False)
    try:
        yield
    finally:
        encoder.use_constant_padding()


def _compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))
