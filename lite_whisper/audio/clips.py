"""Clips: decoded audio (`Clip`), and audio that has not been read yet (`Entry`)."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.errors import InputError
from .decoding import decode


class CallPosition(NamedTuple):
    """
    Position of a clip within a call. Such clips carry the transcript of the whole call.

    Args:
        parent_id (`str`): id of the call.
        chunk_index (`int`): index of the clip within the call, from 0.
    """

    parent_id: str
    chunk_index: int


@dataclass(frozen=True)
class Clip:
    """
    Decoded audio.

    Args:
        name (`str`): a name without local paths; it appears in published files.
        samples (`np.ndarray` of shape `(samples,)`): float32 in [-1, 1] at 16 kHz, mono.
        text (`str`, *optional*): the reference transcript.
        call_position (`CallPosition`, *optional*): for clips that are part of a call.
    """

    name: str
    samples: np.ndarray
    text: str | None = None
    call_position: CallPosition | None = None


@dataclass(frozen=True)
class Entry:
    """
    A clip that has not been read yet.

    Args:
        name (`str`): a name without local paths; it appears in published files.
        load (`Callable`): returns a path or bytes that soundfile can open.
        text (`str`, *optional*): the reference transcript.
        location (`str`): path of the file, or row of the dataset.
        call_position (`CallPosition`, *optional*): for clips that are part of a call.
    """

    name: str
    load: Callable[[], str | Path | io.BytesIO]
    text: str | None
    location: str
    call_position: CallPosition | None = None

    def read(self) -> "Clip":
        """
        Reads and decodes the clip.

        Raises:
            InputError: the clip cannot be loaded or decoded, is empty or too long, or has samples that are not finite.
            OSError: the file cannot be opened.
        """
        try:
            return Clip(self.name, decode(self.load()), self.text, self.call_position)
        except (InputError, OSError):
            raise
        except Exception as error:  # a connection, an archive or memory failed; other clips may still be readable
            raise InputError(f"cannot be read ({type(error).__name__})") from error
