"""Audio files of any rate in, 16 kHz mono samples out."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..common.errors import InputError

SAMPLING_RATE = 16_000
# What people have too, and libsndfile does not read.
TO_CONVERT = (".m4a", ".webm", ".mp4", ".aac", ".wma", ".amr", ".mkv", ".mov")
LOWEST_RATE = 1_000  # Hz; from a mistaken rate of 1 Hz every sample would become 16,000
LONGEST = 4  # hours, 0.92 GB of samples; a file of a few hundred kilobytes may claim to hold days
BLOCK = 1 << 20  # samples of all channels that are decoded at once


def decode(file: str | Path | io.BytesIO, longest: float | None = None) -> np.ndarray:
    """
    Reads wav, flac, ogg or mp3 of any rate and channel count, in blocks: little more is in memory than the result.

    Args:
        file (`str`, `Path` or `io.BytesIO`): the file, or what is in it.
        longest (`float`, *optional*, defaults to that of `LONGEST` hours): seconds of audio at the most.

    Returns:
        `np.ndarray` of shape `(samples,)`, float32, 16 kHz, mono.

    Raises:
        InputError: not decodable, empty, longer than `longest`, or not finite.
    """
    try:
        with _opened(file) as stream, _Recording(stream, closefd=False) as sound:
            if sound.samplerate < LOWEST_RATE:
                raise InputError(f"has a sampling rate of {sound.samplerate} Hz; speech needs {LOWEST_RATE} at least")
            blocks = list(_no_longer(_resampled_blocks(sound), longest))
            if not sound.tell():
                raise InputError("holds no audio")
    except InputError:
        raise
    except Exception as error:  # of libsndfile, soxr or memory: whatever it is, it is about this file
        # Not the whole message: it repeats the path, and what was skipped is told in a file that is published.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or type(error).__name__
        known = not isinstance(file, io.BytesIO) and Path(file).suffix.lower() in TO_CONVERT
        advice = "; convert it to wav or flac, for example with ffmpeg" if known else ""
        raise InputError(f"cannot be decoded ({reason.rstrip('.')}){advice}") from error
    if not any(map(len, blocks)):
        raise InputError("is shorter than one sample at 16 kHz")
    if not all(np.isfinite(block).all() for block in blocks):
        raise InputError("holds NaN or infinite samples")
    return np.concatenate(blocks)


class _Recording(soundfile.SoundFile):
    """Is read once, from its beginning; soundfile seeks after every block, which a FLAC of unknown length cannot."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(file: str | Path | io.BytesIO) -> Iterator[int | io.BytesIO]:
    """What soundfile opens whatever the file's name: the descriptor, or the bytes as they are."""
    if isinstance(file, io.BytesIO):
        yield file
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError("is no file")
    with path.open("rb") as stream:
        yield stream.fileno()


def _resampled_blocks(sound: _Recording) -> Iterator[np.ndarray]:
    """The samples, mono at 16 kHz, as far as there are any: headers do not always tell the truth."""
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLING_RATE, 1, dtype="float32")
    while len(block := sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            mono = block.mean(axis=1)
        yield resampler.resample_chunk(mono)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _no_longer(blocks: Iterator[np.ndarray], longest: float | None) -> Iterator[np.ndarray]:
    """The blocks, as long as there are no more than of so many seconds, or of `LONGEST` hours."""
    left = (longest or LONGEST * 3600) * SAMPLING_RATE
    for block in blocks:
        left -= len(block)
        if left < 0:
            limit = f"{longest:g} seconds" if longest else f"{LONGEST} hours"
            raise InputError(f"is longer than {limit}; split it")
        yield block
