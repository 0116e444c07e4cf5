"""Error rates on a whole corpus, with Whisper's own normalizers, word by word or with compounds merged."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import evaluate
import jiwer
from transformers import WhisperTokenizer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from ..common.errors import InputError

NORMALIZERS = ("basic", "english", "none")
SCORINGS = {
    "plain": "word by word (jiwer)",
    "compounds": "with compounds merged (kaldialign), as the Open ASR leaderboard scores",
}
"""Ways to count word errors: under `compounds` neither "white paper" for "whitepaper" nor the reverse is one."""


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


def check_scoring(scoring: str) -> None:
    """Raises `InputError` where what a scoring needs is not installed."""
    if scoring == "compounds" and importlib.util.find_spec("kaldialign") is None:
        raise InputError("kaldialign is not installed; pip install 'lite-whisper[leaderboard]'", setting="scoring")


class WordErrors(NamedTuple):
    """Words that are others, that are missing, and that were not said."""

    substitutions: int
    deletions: int
    insertions: int


def error_rates(references: Sequence[str], predictions: Sequence[str], scoring: str = "plain") -> ErrorRates:
    """
    Error rates of normalised texts.

    Args:
        references (`Sequence[str]`): what was said.
        predictions (`Sequence[str]`): what was recognised.
        scoring (`str`, *optional*, defaults to `"plain"`): one of `SCORINGS`; characters are always counted plainly.

    Raises:
        InputError: no reference has a word.
    """
    words = sum(len(reference.split()) for reference in references)
    if not words:
        raise InputError("no reference has a word, so there is no error rate; check the transcripts")
    errors = _count(references, predictions, scoring)
    characters = jiwer.process_characters(list(references), list(predictions))
    return ErrorRates(100 * sum(errors) / words, 100 * characters.cer, *errors, words)


def word_errors(reference: str, prediction: str, scoring: str = "plain") -> int:
    """Substitutions, deletions and insertions of words in one normalised text; for `scoring` see `error_rates`."""
    return sum(_count([reference], [prediction], scoring))


def _count(references: Sequence[str], predictions: Sequence[str], scoring: str) -> WordErrors:
    if scoring == "plain":
        counts = jiwer.process_words(list(references), list(predictions))
        return WordErrors(counts.substitutions, counts.deletions, counts.insertions)
    from kaldialign import batch_error_rate

    merged = batch_error_rate(map(str.split, references), map(str.split, predictions), merge_compounds=True)
    return WordErrors(merged["sub"], merged["del"], merged["ins"])


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
