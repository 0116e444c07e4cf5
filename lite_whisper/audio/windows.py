"""Splits clips into windows of the model's length, and turns them into batches and log-mel features."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from ..common.errors import InputError
from .clips import Clip
from .decoding import SAMPLING_RATE

logger = logging.getLogger(__name__)


MIN_PEAK = 1e-4  # peak amplitude, -80 dB of full scale; windows below are silent


def feature_batches(
    clips: Iterable[Clip],
    feature_extractor: WhisperFeatureExtractor,
    num_windows: int,
    batch_size: int,
    noise: tuple[float, float] | tuple[()] = (),
    seed: int = 0,
) -> Iterator[torch.Tensor]:
    """
    Splits clips into windows of the model's length and computes log-mel features. Silent windows are skipped.

    Args:
        clips (`Iterable[Clip]`): 16 kHz audio; clips longer than a window give several windows.
        feature_extractor (`WhisperFeatureExtractor`): the model's feature extractor.
        num_windows (`int`): maximum number of windows.
        batch_size (`int`): windows per batch.
        noise (`tuple[float, float]`, *optional*): range of signal-to-noise ratios in dB at which white noise is added;
            no noise by default.
        seed (`int`, *optional*, defaults to 0): seed of the noise.

    Yields:
        `torch.Tensor` of shape `(batch_size or fewer, mel_bins, mel_frames)`.

    Raises:
        InputError: all audio is silent.
    """
    length = feature_extractor.n_samples
    generator = np.random.default_rng(seed)
    silent = 0

    def audible_windows() -> Iterator[np.ndarray]:
        nonlocal silent
        for window in split_into_windows(clips, length):
            if np.abs(window.samples).max() >= MIN_PEAK:
                yield with_noise(window.samples, generator.uniform(*noise), generator) if noise else window.samples
            else:
                silent += 1

    windows = itertools.islice(audible_windows(), num_windows)
    used = 0
    while batch := list(itertools.islice(windows, batch_size)):
        yield feature_extractor(batch, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        used += len(batch)
    if silent:
        logger.warning("skipped %d silent windows", silent)
    if not used:
        raise InputError(
            "the calibration audio is silent (below -80 dB); check the recordings or name another dataset",
            setting="dataset",
        )


def split_into_windows(clips: Iterable[Clip], length: int) -> Iterator[Clip]:
    """Splits clips into windows of `length` samples; the last window of a clip may be shorter."""
    for clip in clips:
        for start in range(0, len(clip.samples), length):
            yield Clip(clip.name, clip.samples[start : start + length])


def with_noise(samples: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """
    Adds white noise.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): float32.
        ratio (`float`): signal-to-noise ratio in dB.
        generator (`np.random.Generator`): source of the noise.

    Returns:
        `np.ndarray` of shape `(samples,)`, float32.
    """
    power = float((samples.astype(np.float64) ** 2).mean()) / 10 ** (ratio / 10)
    return (samples + power**0.5 * generator.standard_normal(len(samples))).astype(np.float32)


def batches_by_length(
    clips: Sequence[Clip], extractor: WhisperFeatureExtractor, batch_size: int
) -> Iterator[list[int]]:
    """Indices of clips in batches of similar length, shortest first; clips longer than a window are batched apart."""
    by_length = sorted(range(len(clips)), key=lambda index: len(clips[index].samples))
    short = [index for index in by_length if len(clips[index].samples) <= extractor.n_samples]
    for indices in (short, by_length[len(short) :]):
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
