"""Decodes audio files of any sampling rate to 16 kHz mono samples."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..common.errors import InputError

SAMPLING_RATE = 16_000
# Common formats that libsndfile does not read.
UNSUPPORTED_SUFFIXES = (".m4a", ".webm", ".mp4", ".aac", ".wma", ".amr", ".mkv", ".mov")
MIN_RATE = 1_000  # Hz; a wrong rate of 1 Hz in a header would turn every sample into 16,000
MAX_HOURS = 4  # 0.92 GB of samples; the header of a file of a few hundred kilobytes may claim days
BLOCK_SIZE = 1 << 20  # samples of all channels decoded at once


def decode(file: str | Path | io.BytesIO, max_seconds: float | None = None) -> np.ndarray:
    """
    Decodes wav, flac, ogg or mp3 with any sampling rate and number of channels.

    Memory: little more than the result, since the file is decoded in blocks.

    Args:
        file (`str`, `Path` or `io.BytesIO`): path or contents of the file.
        max_seconds (`float`, *optional*, defaults to `MAX_HOURS` hours): maximum duration.

    Returns:
        `np.ndarray` of shape `(samples,)`, float32, 16 kHz, mono.

    Raises:
        InputError: the file cannot be decoded, is empty or longer than `max_seconds`, or has samples that are not
            finite.
    """
    try:
        with _opened(file) as stream, _Stream(stream, closefd=False) as sound:
            if sound.samplerate < MIN_RATE:
                raise InputError(f"has a sampling rate of {sound.samplerate} Hz; at least {MIN_RATE} Hz is required")
            blocks = list(_limited(_resampled_blocks(sound), max_seconds))
            if not sound.tell():
                raise InputError("contains no audio")
    except InputError:
        raise
    except Exception as error:  # libsndfile, soxr or memory failed: in any case because of this file
        # The full message would repeat the path, and the reasons for skipping a file are published.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or type(error).__name__
        unsupported = not isinstance(file, io.BytesIO) and Path(file).suffix.lower() in UNSUPPORTED_SUFFIXES
        advice = "; convert it to wav or flac, for example with ffmpeg" if unsupported else ""
        raise InputError(f"cannot be decoded ({reason.rstrip('.')}){advice}") from error
    if not any(map(len, blocks)):
        raise InputError("is shorter than one sample at 16 kHz")
    if not all(np.isfinite(block).all() for block in blocks):
        raise InputError("contains NaN or infinite samples")
    return np.concatenate(blocks)


class _Stream(soundfile.SoundFile):
    """A file that is read once, without seeking: soundfile seeks after every block, which fails for streamed FLAC."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(file: str | Path | io.BytesIO) -> Iterator[int | io.BytesIO]:
    """Opens a file as a descriptor, so that soundfile ignores its name; passes bytes through."""
    if isinstance(file, io.BytesIO):
        yield file
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise InputError("is not a regular file")
    with path.open("rb") as stream:
        yield stream.fileno()


def _resampled_blocks(sound: _Stream) -> Iterator[np.ndarray]:
    """Mono samples at 16 kHz, to the actual end of the file, whatever its header claims."""
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLING_RATE, 1, dtype="float32")
    while len(block := sound.read(max(1, BLOCK_SIZE // sound.channels), dtype="float32", always_2d=True)):
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are rejected later
            mono = block.mean(axis=1)
        yield resampler.resample_chunk(mono)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _limited(blocks: Iterator[np.ndarray], max_seconds: float | None) -> Iterator[np.ndarray]:
    """Passes blocks on and raises `InputError` once they exceed `max_seconds`, or `MAX_HOURS` hours by default."""
    left = (max_seconds or MAX_HOURS * 3600) * SAMPLING_RATE
    for block in blocks:
        left -= len(block)
        if left < 0:
            limit = f"{max_seconds:g} seconds" if max_seconds else f"{MAX_HOURS} hours"
            raise InputError(f"is longer than {limit}; split it")
        yield block
