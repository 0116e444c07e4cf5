"""Corpus error rates with Whisper's normalizers, word by word or with compounds merged."""

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
    "compounds": "with compounds merged as on the Open ASR leaderboard (kaldialign)",
}
"""Ways to count word errors; with `compounds`, "white paper" for "whitepaper" or the reverse is not an error."""


def text_normalizer(name: str, tokenizer: WhisperTokenizer) -> Callable[[str], str]:
    """
    Returns the function that normalises texts before they are compared.

    Args:
        name (`str`): `"basic"` or `"english"` for Whisper's normalizers, `"none"` to strip white space only.
        tokenizer (`WhisperTokenizer`): tokenizer with the spelling map of the English normalizer, if it has one.
    """
    if name == "english":
        return EnglishTextNormalizer(tokenizer.english_spelling_normalizer or {})
    return BasicTextNormalizer() if name == "basic" else str.strip


@dataclass(frozen=True)
class ErrorRates:
    """
    Error rates of a corpus: errors in all texts divided by the words or characters of all references.

    Args:
        wer (`float`): word error rate in per cent.
        cer (`float`): character error rate in per cent.
        substitutions (`int`): substituted words.
        deletions (`int`): deleted words.
        insertions (`int`): inserted words.
        words (`int`): words in all references.
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int


def check_scoring(scoring: str) -> None:
    """Raises `InputError` if a package required by the scoring is not installed."""
    if scoring == "compounds" and importlib.util.find_spec("kaldialign") is None:
        raise InputError("kaldialign is not installed; pip install 'lite-whisper[leaderboard]'", setting="scoring")


class WordErrors(NamedTuple):
    """Number of substituted, deleted and inserted words."""

    substitutions: int
    deletions: int
    insertions: int


def error_rates(references: Sequence[str], predictions: Sequence[str], scoring: str = "plain") -> ErrorRates:
    """
    Computes the error rates of normalised texts.

    Args:
        references (`Sequence[str]`): the reference transcripts.
        predictions (`Sequence[str]`): the model's transcripts, in the same order.
        scoring (`str`, *optional*, defaults to `"plain"`): one of `SCORINGS`; it does not affect the character error
            rate.

    Raises:
        InputError: if the references contain no words.
    """
    words = sum(len(reference.split()) for reference in references)
    if not words:
        raise InputError("the references contain no words, so the error rate is undefined; check the transcripts")
    errors = _count(references, predictions, scoring)
    characters = jiwer.process_characters(list(references), list(predictions))
    return ErrorRates(100 * sum(errors) / words, 100 * characters.cer, *errors, words)


def word_errors(reference: str, prediction: str, scoring: str = "plain") -> int:
    """Number of word errors in one normalised text; for `scoring` see `error_rates`."""
    return sum(_count([reference], [prediction], scoring))


def _count(references: Sequence[str], predictions: Sequence[str], scoring: str) -> WordErrors:
    if scoring == "plain":
        counts = jiwer.process_words(list(references), list(predictions))
        return WordErrors(counts.substitutions, counts.deletions, counts.insertions)
    from kaldialign import batch_error_rate

    merged = batch_error_rate(map(str.split, references), map(str.split, predictions), merge_compounds=True)
    return WordErrors(merged["sub"], merged["del"], merged["ins"])


def word_error_rate(references: Sequence[str], predictions: Sequence[str], normalize: Callable[[str], str]) -> float:
    """Word error rate of a corpus in per cent, after normalisation."""
    return error_rates([normalize(text) for text in references], [normalize(text) for text in predictions]).wer


class WordErrorRate(evaluate.Metric):
    """Corpus word error rate as a fraction, like `evaluate.load("wer")` but without network access."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Word errors divided by the number of words in all references.",
            citation="",
            inputs_description="predictions and references: lists of normalised texts",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> float:
        return error_rates(references, predictions).wer / 100
