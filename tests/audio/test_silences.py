"""Chunks of synthetic recordings with sound and pauses at known positions."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_whisper.audio import SAMPLING_RATE, AudioDataset
from lite_whisper.audio.silences import split_at_silences
from lite_whisper.audio.windows import with_noise

WINDOW = 30 * SAMPLING_RATE
TEST = Path(__file__).parents[2] / "examples/digits/test"
HUM = 0.3 * sum(np.sin(2 * np.pi * tone * np.arange(600 * SAMPLING_RATE) / SAMPLING_RATE) for tone in (50, 100, 150))


def phrase(seconds: float, seed: int = 0) -> np.ndarray:
    """Sound without pauses: low noise modulated at 4 Hz, and a hiss every 0.7 seconds."""
    generator = np.random.default_rng(seed)
    white = generator.standard_normal((2, round(seconds * SAMPLING_RATE)))
    time = np.arange(white.shape[1]) / SAMPLING_RATE
    low = np.convolve(white[0], np.hanning(20) / 3, mode="same") * (1.2 + np.sin(2 * np.pi * 4 * time))
    high = np.diff(white[1], prepend=0.0) * (time % 0.7 < 0.15)
    return (0.1 * low + 0.05 * high).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLING_RATE), np.float32)


def joined(*parts: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The parts joined to one recording, and the start and end of each part."""
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), [(int(end) - len(part), int(end)) for end, part in zip(ends, parts, strict=True)]


def check(found: list[tuple[int, int]], length: int, max_length: int) -> None:
    assert all(0 <= start < end <= length and end - start <= max_length for start, end in found)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))


CONDITIONS = {
    "unchanged": lambda samples: samples,
    "at -20 dB": lambda samples: 0.1 * samples,
    "at -60 dB": lambda samples: 0.001 * samples,
    "in noise": lambda samples: with_noise(samples, 10, np.random.default_rng(1)),
    "with hum": lambda samples: samples + HUM[: len(samples)].astype(np.float32),
}
under_conditions = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)


@under_conditions
def test_chunks_contain_speech_and_no_long_pauses(condition) -> None:
    clips = [clip.samples for clip, _ in zip(AudioDataset([str(TEST)]), range(12), strict=False)]
    pauses = [silence(12 if number % 3 == 2 else 0.5) for number in range(12)]
    samples, positions = joined(*(part for pair in zip(clips, pauses, strict=True) for part in pair))
    found = split_at_silences(condition(samples), WINDOW)
    check(found, len(samples), WINDOW)
    inside = np.zeros(len(samples), bool)
    for start, end in found:
        inside[start:end] = True
    for start, end in positions[::2]:
        loud = np.abs(samples[start:end]) > 0.03 * np.abs(samples[start:end]).max()
        assert inside[start:end][loud].all()
    dropped = [1 - inside[start:end].mean() for start, end in positions[1::2]]
    assert min(dropped[2::3]) > 0.8 and max(dropped[0::3] + dropped[1::3]) == 0


def test_soft_speech_after_loud_speech_is_kept() -> None:
    samples, positions = joined(phrase(40), silence(10), 0.001 * phrase(2), silence(10), phrase(1))
    (*_, soft, loud) = split_at_silences(samples, WINDOW)
    for (start, end), (first, last) in ((soft, positions[2]), (loud, positions[4])):
        assert 0 < first - start < SAMPLING_RATE and min(last + SAMPLING_RATE // 3, len(samples)) <= end


@under_conditions
def test_cuts_are_in_pauses(condition) -> None:
    lengths = np.random.default_rng(2).uniform(2, 8, 30)
    parts = [part for seed, seconds in enumerate(lengths) for part in (phrase(seconds, seed), silence(0.5))]
    samples, positions = joined(*parts)
    found = split_at_silences(condition(samples), WINDOW)
    check(found, len(samples), WINDOW)
    cuts = [end for _, end in found[:-1]]
    assert cuts == [start for start, _ in found[1:]] and len(cuts) >= len(samples) // WINDOW
    assert all(any(start < cut < end for start, end in positions[1::2]) for cut in cuts)
    assert len(found) <= 1.5 * len(samples) / WINDOW


@under_conditions
def test_the_longest_pause_is_cut_in_the_middle(condition) -> None:
    pauses = (2, 0.5, 0.9, 0.5, 0.5)  # the first one ends 12 seconds after the beginning
    parts = [part for seconds, pause in zip((10, 8.5, 2, 2, 20), pauses, strict=True) for part in (seconds, pause)]
    samples, positions = joined(*(silence(part) if number % 2 else phrase(part) for number, part in enumerate(parts)))
    (_, cut), _ = split_at_silences(condition(samples), WINDOW)
    assert cut == pytest.approx(sum(positions[5]) / 2, abs=0.06 * SAMPLING_RATE)


@pytest.mark.parametrize("quieter", [0.1, 0.3])
def test_without_a_pause_the_quietest_moment_is_cut(quieter: float) -> None:
    samples, positions = joined(phrase(25), quieter * phrase(1), phrase(25))
    (first, cut), (again, last) = split_at_silences(samples, WINDOW)
    assert (first, again, last) == (0, cut, len(samples))
    assert positions[1][0] < cut < positions[1][1]


@pytest.mark.parametrize("seconds", [30.01, 31, 40, 59.9, 60.1])
def test_no_chunk_is_very_short(seconds: float) -> None:
    """Even if the only pause is near the end."""
    samples, _ = joined(phrase(seconds - 1.5), silence(0.5), phrase(1))
    found = split_at_silences(samples, WINDOW)
    check(found, len(samples), WINDOW)
    assert sum(end - start for start, end in found) == len(samples)
    assert min(end - start for start, end in found) > 9 * SAMPLING_RATE


@pytest.mark.parametrize(
    "samples",
    [
        silence(40),
        np.random.default_rng(0).standard_normal(40 * SAMPLING_RATE).astype(np.float32),
        1e-4 * np.random.default_rng(0).standard_normal(40 * SAMPLING_RATE).astype(np.float32).round(1),
        np.cumsum(np.random.default_rng(0).standard_normal(40 * SAMPLING_RATE)).astype(np.float32) / 1000,
        HUM[: 40 * SAMPLING_RATE].astype(np.float32),
    ],
    ids=["zeros", "white noise", "faint noise", "brown noise", "hum"],
)
def test_silence_and_steady_noise_give_no_chunks(samples: np.ndarray) -> None:
    assert split_at_silences(samples, WINDOW) == []


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.1, 8), st.floats(1e-3, 1), st.floats(0, 9)), min_size=1, max_size=8),
    st.integers(6 * SAMPLING_RATE, 8 * SAMPLING_RATE),
)
def test_sound_of_any_length_is_covered_in_order(parts: list[tuple[float, float, float]], max_length: int) -> None:
    sounds = [part for seconds, gain, pause in parts for part in (gain * phrase(seconds), silence(pause))]
    samples, positions = joined(silence(1), *sounds)
    found = split_at_silences(samples, max_length)
    check(found, len(samples), max_length)
    inside = np.zeros(len(samples), bool)
    for start, end in found:
        inside[start:end] = True
    assert all(inside[start:end].all() for start, end in positions[1::2])
