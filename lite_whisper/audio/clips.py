"""A clip, decoded or still to be read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.errors import InputError
from .decoding import decode


class Chunk(NamedTuple):
    """
    Where in a call a clip lies, whose transcript is that of the whole call.

    Args:
        parent_id (`str`): the call.
        chunk_index (`int`): the place in it, from 0.
    """

    parent_id: str
    chunk_index: int


@dataclass(frozen=True)
class Clip:
    """
    Decoded audio.

    Args:
        name (`str`): what a published file may say of it.
        samples (`np.ndarray` of shape `(samples,)`): float32 in [-1, 1] at 16 kHz, mono.
        text (`str`, *optional*): its transcript where there is one.
        chunk (`Chunk`, *optional*): where it is one of those of a call.
    """

    name: str
    samples: np.ndarray
    text: str | None = None
    chunk: Chunk | None = None


@dataclass(frozen=True)
class Entry:
    """
    A clip that has not been read yet.

    Args:
        name (`str`): what a published file may say of it.
        load (`Callable`): returns what soundfile can open.
        text (`str`, *optional*): its transcript where there is one.
        location (`str`): where it is: the path of the file, or the row of a dataset.
        chunk (`Chunk`, *optional*): where it is one of those of a call.
    """

    name: str
    load: Callable[[], str | Path | io.BytesIO]
    text: str | None
    location: str
    chunk: Chunk | None = None

    def read(self) -> "Clip":
        """
        The decoded clip.

        Raises:
            InputError: it cannot be had or decoded, is empty, too long, or not finite.
            OSError: it cannot be opened.
        """
        try:
            return Clip(self.name, decode(self.load()), self.text, self.chunk)
        except (InputError, OSError):
            raise
        except Exception as error:  # of a connection, an archive or memory: the other clips have nothing to do with it
            raise InputError(f"cannot be read ({type(error).__name__})") from error
