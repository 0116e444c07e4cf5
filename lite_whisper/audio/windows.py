"""Clips in; windows of the model's length, batches of similar length and log-mel features out."""

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


SILENCE = 1e-4  # peak amplitude, -80 dB of full scale


def feature_batches(
    clips: Iterable[Clip],
    feature_extractor: WhisperFeatureExtractor,
    num_windows: int,
    batch_size: int,
    noise: tuple[float, float] | tuple[()] = (),
    seed: int = 0,
) -> Iterator[torch.Tensor]:
    """
    Cuts clips into windows of the model's length and turns them into log-mel features.

    Args:
        clips (`Iterable[Clip]`): 16 kHz audio; what is longer than a window gives several.
        feature_extractor (`WhisperFeatureExtractor`): the model's own.
        num_windows (`int`): how many windows to take at the most.
        batch_size (`int`): windows per batch.
        noise (`tuple[float, float]`, *optional*): range of signal-to-noise ratios in dB at which white noise is added;
            no noise by default.
        seed (`int`, *optional*, defaults to 0): of the noise.

    Yields:
        `torch.Tensor` of shape `(batch_size or fewer, mel_bins, mel_frames)`.

    Raises:
        InputError: all audio is silent.
    """
    length = feature_extractor.n_samples
    generator = np.random.default_rng(seed)
    silent = 0

    def sounding_windows() -> Iterator[np.ndarray]:
        nonlocal silent
        for window in windows_of(clips, length):
            if np.abs(window.samples).max() >= SILENCE:
                yield with_noise(window.samples, generator.uniform(*noise), generator) if noise else window.samples
            else:
                silent += 1

    windows = itertools.islice(sounding_windows(), num_windows)
    used = 0
    while batch := list(itertools.islice(windows, batch_size)):
        yield feature_extractor(batch, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        used += len(batch)
    if silent:
        logger.warning("left out %d silent windows", silent)
    if not used:
        raise InputError(
            "the calibration audio is silent (below -80 dB); check the recordings or name another dataset",
            setting="dataset",
        )


def windows_of(clips: Iterable[Clip], length: int) -> Iterator[Clip]:
    """Cuts clips into windows of `length` samples, the last of each clip shorter."""
    for clip in clips:
        for start in range(0, len(clip.samples), length):
            yield Clip(clip.name, clip.samples[start : start + length])


def with_noise(samples: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """
    Adds white noise.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): float32.
        ratio (`float`): of signal to noise, in dB.
        generator (`np.random.Generator`): of the noise.

    Returns:
        `np.ndarray` of shape `(samples,)`, float32.
    """
    power = float((samples.astype(np.float64) ** 2).mean()) / 10 ** (ratio / 10)
    return (samples + power**0.5 * generator.standard_normal(len(samples))).astype(np.float32)


def batches_by_length(
    clips: Sequence[Clip], extractor: WhisperFeatureExtractor, batch_size: int
) -> Iterator[list[int]]:
    """Indices of clips in batches of similar length, the shortest first; those beyond a window are among themselves."""
    by_length = sorted(range(len(clips)), key=lambda index: len(clips[index].samples))
    short = [index for index in by_length if len(clips[index].samples) <= extractor.n_samples]
    for part in (short, by_length[len(short) :]):
        yield from (part[start : start + batch_size] for start in range(0, len(part), batch_size))
