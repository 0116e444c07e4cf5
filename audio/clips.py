"""A clip, decoded or still to be read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.errors import InputError
from .decoding import decode


@dataclass(frozen=True)
class Clip:
    """
    Decoded audio.

    Args:
        name (`str`): what a published file may say of it.
        samples (`np.ndarray` of shape `(samples,)`): float32 in [-1, 1] at 16 kHz, mono.
        text (`str`, *optional*): its transcript where there is one.
    """

    name: str
    samples: np.ndarray
    text: str | None = None


@dataclass(frozen=True)
class Entry:
    """
    A clip that has not been read yet.

    Args:
        name (`str`): what a published file may say of it.
        load (`Callable`): returns what soundfile can open.
        text (`str`, *optional*): its transcript where there is one.
        location (`str`): where it is: the path of the file, or the row of a dataset.
    """

    name: str
    load: Callable[[], str | Path | io.BytesIO]
    text: str | None
    location: str

    def read(self) -> "Clip":
        """
        The decoded clip.

        Raises:
            InputError: it cannot be had or decoded, is empty, too long, or not finite.
            OSError: it cannot be opened.
        """
        try:
            return Clip(self.name, decode(self.load()), self.text)
        except (InputError, OSError):
            raise
        except Exception as error:  # of a connection, an archive or memory: the other clips have nothing to do with it
            raise InputError(f"cannot be read ({type(error).__name__})") from error
