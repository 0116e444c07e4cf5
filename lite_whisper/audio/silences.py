"""Splits long recordings into chunks at silences."""

from collections.abc import Iterator

import numpy as np

from .decoding import SAMPLING_RATE

FRAME = SAMPLING_RATE // 50  # samples; the resolution of all boundaries
BANDS = (200, 800, 3200, SAMPLING_RATE // 2)  # Hz, lower edges; speech stands out from most noise in one of the bands
SMOOTHING = 15  # frames to average levels over; shorter quiet moments occur within words
BLOCK_SIZE = 3000  # frames whose levels are computed at once
MIN_LEVEL = -110.0  # dB of full scale; Whisper's features do not show anything below
THRESHOLD = 5.0  # dB above the minimum; in four hours of white noise no level exceeds the minimum by more
MAX_PAUSE = 5 * 50  # frames; longer pauses are dropped
MARGIN = 25  # frames of a dropped pause that are kept on either side


def split_at_silences(samples: np.ndarray, max_length: int) -> list[tuple[int, int]]:
    """
    Splits a recording into chunks, at silences where possible, and drops long pauses.

    Pauses of more than 5 seconds are dropped except for half a second on either side. A frame is silent if, in each of
    three bands above 200 Hz, its level is less than 5 dB above the quietest moment of the recording; the result thus
    depends neither on loudness nor on steady noise or hum. Stretches longer than `max_length` are cut in the middle of
    the longest pause in their last third, a pause being where the level stays within 5 dB of the minimum there.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): 16 kHz, mono.
        max_length (`int`): maximum samples per chunk.

    Returns:
        `list[tuple[int, int]]`: start and end sample of each chunk, in order. Empty if the recording is silent or
            contains only steady noise.
    """
    levels = _levels(samples)
    return [
        (start * FRAME, min(end * FRAME, len(samples)))
        for stretch in _stretches(levels)
        for start, end in _cut(levels, *stretch, max_length // FRAME)
    ]


def _levels(samples: np.ndarray) -> np.ndarray:
    """Smoothed power of every frame in each band, in dB: shape `(bands, frames)`."""
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    window = np.hanning(FRAME)
    edges = np.searchsorted(np.fft.rfftfreq(FRAME, 1 / SAMPLING_RATE), BANDS)
    powers = np.empty((len(BANDS) - 1, len(frames)))
    for start in range(0, len(frames), BLOCK_SIZE):
        spectrum = np.abs(np.fft.rfft(frames[start : start + BLOCK_SIZE] * window)) ** 2
        powers[:, start : start + BLOCK_SIZE] = np.add.reduceat(spectrum, edges, axis=1)[:, :-1].T
    powers *= 2 / (FRAME * (window**2).sum())
    padded = np.pad(powers, ((0, 0), (SMOOTHING // 2, SMOOTHING // 2)), mode="symmetric")
    smoothed = [np.convolve(band, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid") for band in padded]
    return 10 * np.log10(np.maximum(smoothed, 10 ** (MIN_LEVEL / 10)))


def _above_minimum(levels: np.ndarray) -> np.ndarray:
    """Level of each frame above the minimum of its band, in dB, in the band where the difference is largest."""
    return (levels - levels.min(axis=1, keepdims=True)).max(axis=0)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each run of true values."""
    changes = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False]))))
    return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]


def _stretches(levels: np.ndarray) -> list[tuple[int, int]]:
    """The stretches that remain after dropping long pauses."""
    found: list[tuple[int, int]] = []
    for start, end in _runs(_above_minimum(levels) >= THRESHOLD):
        if found and start - found[-1][1] <= MAX_PAUSE:
            start = found.pop()[0]
        found.append((start, end))
    return [(max(start - MARGIN, 0), min(end + MARGIN, levels.shape[1])) for start, end in found]


def _cut(levels: np.ndarray, start: int, end: int, max_length: int) -> Iterator[tuple[int, int]]:
    """Cuts a stretch into chunks; the last one keeps at least a third of the maximum length."""
    while end - start > max_length:
        until = min(start + max_length, end - max_length // 3)
        begin = until - max_length // 3
        above = _above_minimum(levels[:, begin:until])
        pause = max(_runs(above < above.min() + THRESHOLD), key=lambda run: run[1] - run[0])
        middle = begin + sum(pause) // 2
        yield start, middle
        start = middle
    yield start, end
