"""Where a recording is silent, and its pieces between: what is longer than a window is cut where nobody speaks."""

from collections.abc import Iterator

import numpy as np

from .decoding import SAMPLING_RATE

FRAME = SAMPLING_RATE // 50  # samples; places are known as exactly as this
BANDS = (200, 800, 3200, SAMPLING_RATE // 2)  # Hz, where each begins; speech stands out of most noises in one of them
SMOOTHED = 15  # frames over which a level is taken: shorter quiet moments lie within words
BLOCK = 3000  # frames whose levels are computed at once
FAINTEST = -110.0  # dB of full scale; what is below, Whisper's features do not show
ABOVE = 5.0  # dB; in four hours of white noise no level exceeds the lowest by more
LONGEST_PAUSE = 5 * 50  # frames; a longer one is left out
KEPT = 25  # frames of it before and after what sounds


def pieces(samples: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """
    Cuts a recording into pieces, where it is silent if it is so anywhere.

    Left out is what is silent for more than 5 seconds, but for half a second before and after what sounds. Silent is
    what exceeds the quietest moment of the recording by less than 5 dB, in each of three bands above 200 Hz: so neither
    loudness nor even noise decides, nor does a hum. What sounds for longer than `longest` is cut in the middle of the
    longest pause in its last third, where the level stays within 5 dB of the lowest there.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): 16 kHz, mono.
        longest (`int`): samples of a piece at the most.

    Returns:
        `list[tuple[int, int]]`: first sample and the one after the last of each piece, in their order. None of a
        recording that is silent, or nothing but even noise.
    """
    levels = _levels(samples)
    return [
        (start * FRAME, min(end * FRAME, len(samples)))
        for sounding in _sounding(levels)
        for start, end in _cut(levels, *sounding, longest // FRAME)
    ]


def _levels(samples: np.ndarray) -> np.ndarray:
    """Power around every frame in each band, in dB: shape `(bands, frames)`."""
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    window = np.hanning(FRAME)
    begin = np.searchsorted(np.fft.rfftfreq(FRAME, 1 / SAMPLING_RATE), BANDS)
    powers = np.empty((len(BANDS) - 1, len(frames)))
    for start in range(0, len(frames), BLOCK):
        spectrum = np.abs(np.fft.rfft(frames[start : start + BLOCK] * window)) ** 2
        powers[:, start : start + BLOCK] = np.add.reduceat(spectrum, begin, axis=1)[:, :-1].T
    powers *= 2 / (FRAME * (window**2).sum())
    around = np.pad(powers, ((0, 0), (SMOOTHED // 2, SMOOTHED // 2)), mode="symmetric")
    smoothed = [np.convolve(band, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid") for band in around]
    return 10 * np.log10(np.maximum(smoothed, 10 ** (FAINTEST / 10)))


def _above(levels: np.ndarray) -> np.ndarray:
    """By how many dB each frame exceeds the quietest, in the band in which it does most."""
    return (levels - levels.min(axis=1, keepdims=True)).max(axis=0)


def _runs(holds: np.ndarray) -> list[tuple[int, int]]:
    """From where to where it holds."""
    changes = np.flatnonzero(np.diff(np.concatenate(([False], holds, [False]))))
    return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]


def _sounding(levels: np.ndarray) -> list[tuple[int, int]]:
    """The stretches that are left when long pauses are taken out."""
    found: list[tuple[int, int]] = []
    for start, end in _runs(_above(levels) >= ABOVE):
        if found and start - found[-1][1] <= LONGEST_PAUSE:
            start = found.pop()[0]
        found.append((start, end))
    return [(max(start - KEPT, 0), min(end + KEPT, levels.shape[1])) for start, end in found]


def _cut(levels: np.ndarray, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Pieces of a stretch; what is left for the last one is a third of the longest at the least."""
    while end - start > longest:
        until = min(start + longest, end - longest // 3)
        begin = until - longest // 3
        above = _above(levels[:, begin:until])
        pause = max(_runs(above < above.min() + ABOVE), key=lambda run: run[1] - run[0])
        middle = begin + sum(pause) // 2
        yield start, middle
        start = middle
    yield start, end
