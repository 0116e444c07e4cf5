"""Word error rate on a whole corpus, with Whisper's own normalizers."""

from collections.abc import Callable, Sequence

import jiwer
from transformers import WhisperTokenizer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

NORMALIZERS = ("basic", "english", "none")


def text_normalizer(name: str, tokenizer: WhisperTokenizer) -> Callable[[str], str]:
    """
    The normalizer of that name: Whisper's basic or English one, or none.

    Args:
        name (`str`): one of `NORMALIZERS`.
        tokenizer (`WhisperTokenizer`): holds the spelling map of the English normalizer.
    """
    if name == "english":
        return EnglishTextNormalizer(tokenizer.english_spelling_normalizer or {})
    return BasicTextNormalizer() if name == "basic" else str.strip


def word_error_rate(references: Sequence[str], predictions: Sequence[str], normalize: Callable[[str], str]) -> float:
    """Errors over the words of all references together, in per cent."""
    return 100 * jiwer.wer([normalize(text) for text in references], [normalize(text) for text in predictions])
