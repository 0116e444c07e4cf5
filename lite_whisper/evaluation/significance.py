"""Confidence intervals for the difference between two word error rates."""

from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """
    A difference in word error rate with its 95 % confidence interval, in percentage points.

    Args:
        points (`float`): the difference.
        low (`float`): lower bound of the interval.
        high (`float`): upper bound of the interval.
    """

    points: float
    low: float
    high: float


def paired_bootstrap(
    errors: np.ndarray, base_errors: np.ndarray, words: np.ndarray, samples: int = 10_000, seed: int = 0
) -> Difference:
    """
    Paired bootstrap over utterances of the difference between two models (Bisani and Ney, ICASSP 2004).

    Args:
        errors (`np.ndarray` of shape `(utterances,)`): word errors of the model in each utterance.
        base_errors (`np.ndarray` of shape `(utterances,)`): word errors of the base model in the same utterances.
        words (`np.ndarray` of shape `(utterances,)`): number of words in each reference.
        samples (`int`, *optional*, defaults to 10000): number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0): seed of the random generator.

    Returns:
        `Difference`: word error rate of the model minus that of the base model.
    """
    difference = np.asarray(errors) - np.asarray(base_errors)
    words = np.asarray(words)
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(samples):  # one at a time, since a test set may have tens of thousands of utterances
        drawn = generator.integers(len(words), size=len(words))
        rates.append(100 * difference[drawn].sum() / max(words[drawn].sum(), 1))
    low, high = np.percentile(rates, [2.5, 97.5])
    return Difference(100 * difference.sum() / words.sum(), float(low), float(high))
