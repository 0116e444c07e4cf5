"""The paired bootstrap against what is known of a difference of means."""

import numpy as np
import pytest

from lite_whisper.evaluation.significance import paired_bootstrap


def test_the_interval_is_that_of_the_mean_difference() -> None:
    """With references of one length the rate is a mean, whose 95 % interval is 1.96 standard errors wide."""
    generator = np.random.default_rng(3)
    base = generator.integers(0, 4, 500)
    other = base + generator.integers(-1, 3, 500)
    points, low, high = paired_bootstrap(other, base, np.full(500, 10))
    rates = 100 * (other - base) / 10
    assert points == pytest.approx(rates.mean())
    half = 1.96 * rates.std() / 500**0.5
    assert low == pytest.approx(points - half, abs=0.1 * half) and high == pytest.approx(points + half, abs=0.1 * half)


def test_pairing_takes_out_what_both_share() -> None:
    """Utterances differ widely, the models by one error in each: the difference is certain."""
    base = np.random.default_rng(0).integers(0, 20, 100)
    assert paired_bootstrap(base + 1, base, np.full(100, 20)) == pytest.approx((5.0, 5.0, 5.0))


def test_equal_models_and_long_references() -> None:
    errors, words = np.array([1, 0, 7]), np.array([5, 1, 100])
    assert paired_bootstrap(errors, errors, words) == (0, 0, 0)
    assert paired_bootstrap(errors + np.array([0, 0, 10]), errors, words).points == pytest.approx(1000 / 106)


def test_errors_go_with_the_words_of_their_utterance() -> None:
    words = np.random.default_rng(1).integers(1, 50, 30)
    assert paired_bootstrap(words, np.zeros(30), words) == pytest.approx((100.0, 100.0, 100.0))
