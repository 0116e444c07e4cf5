"""Whether two models differ by more than the choice of utterances."""

from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """
    A difference in word error rate and its 95 % interval, in percentage points.

    Args:
        points (`float`): the difference.
        low (`float`): of the interval.
        high (`float`): of the interval.
    """

    points: float
    low: float
    high: float


def paired_bootstrap(
    errors: np.ndarray, base_errors: np.ndarray, words: np.ndarray, samples: int = 10_000, seed: int = 0
) -> Difference:
    """
    The difference between two models on the same utterances, by resampling utterances (Bisani and Ney, ICASSP 2004).

    Args:
        errors (`np.ndarray` of shape `(utterances,)`): word errors of one model in each utterance.
        base_errors (`np.ndarray` of shape `(utterances,)`): those of the other, in the same utterances.
        words (`np.ndarray` of shape `(utterances,)`): words of each reference.
        samples (`int`, *optional*, defaults to 10000): how often utterances are drawn.
        seed (`int`, *optional*, defaults to 0): of the drawing.

    Returns:
        `Difference`: the one model's rate minus the other's.
    """
    difference = np.asarray(errors) - np.asarray(base_errors)
    words = np.asarray(words)
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(samples):  # one by one, since a leaderboard has tens of thousands of utterances
        drawn = generator.integers(len(words), size=len(words))
        rates.append(100 * difference[drawn].sum() / max(words[drawn].sum(), 1))
    low, high = np.percentile(rates, [2.5, 97.5])
    return Difference(100 * difference.sum() / words.sum(), float(low), float(high))
