"""Error rates on a whole corpus, with Whisper's own normalizers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import evaluate
import jiwer
from transformers import WhisperTokenizer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from ..common.errors import InputError

NORMALIZERS = ("basic", "english", "none")


def text_normalizer(name: str, tokenizer: WhisperTokenizer) -> Callable[[str], str]:
    """
    The normalizer of that name: Whisper's basic or English one, or none.

    Args:
        name (`str`): one of `NORMALIZERS`.
        tokenizer (`WhisperTokenizer`): holds the spelling map of the English normalizer; empty where it has none.
    """
    if name == "english":
        return EnglishTextNormalizer(tokenizer.english_spelling_normalizer or {})
    return BasicTextNormalizer() if name == "basic" else str.strip


@dataclass(frozen=True)
class ErrorRates:
    """
    Errors over the words, or characters, of all references together.

    Args:
        wer (`float`): word error rate in per cent.
        cer (`float`): character error rate in per cent.
        substitutions (`int`): words that are others.
        deletions (`int`): words that are missing.
        insertions (`int`): words that were not said.
        words (`int`): of all references.
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int


def error_rates(references: Sequence[str], predictions: Sequence[str]) -> ErrorRates:
    """
    Error rates of normalised texts.

    Raises:
        InputError: no reference has a word.
    """
    if not any(reference.split() for reference in references):
        raise InputError("no reference has a word, so there is no error rate; check the transcripts")
    words = jiwer.process_words(list(references), list(predictions))
    characters = jiwer.process_characters(list(references), list(predictions))
    return ErrorRates(
        100 * words.wer,
        100 * characters.cer,
        words.substitutions,
        words.deletions,
        words.insertions,
        words.hits + words.substitutions + words.deletions,
    )


def word_errors(reference: str, prediction: str) -> int:
    """Substitutions, deletions and insertions of words in one normalised text."""
    counts = jiwer.process_words(reference, prediction)
    return counts.substitutions + counts.deletions + counts.insertions


def word_error_rate(references: Sequence[str], predictions: Sequence[str], normalize: Callable[[str], str]) -> float:
    """Errors over the words of all references together, in per cent."""
    return error_rates([normalize(text) for text in references], [normalize(text) for text in predictions]).wer


class WordErrorRate(evaluate.Metric):
    """The corpus word error rate as `evaluate.load("wer")` gives it, a fraction, without a network."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Word errors over the words of all references together.",
            citation="",
            inputs_description="predictions and references, lists of normalised texts",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> float:
        return error_rates(references, predictions).wer / 100
