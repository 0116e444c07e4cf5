"""A journal: a file of JSON lines that is only ever added to, each line with a checksum of its own."""

import json
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .files import temporary_name

logger = logging.getLogger(__name__)


CHECKSUM = "crc32"


def append_lines(path: Path, lines: Iterable[Any]) -> None:
    """
    Adds lines to a manifest, or to another file of dataclasses; they are on the disk when it returns.

    Each has a checksum of the rest of it, see `verify_line`.
    """
    # A name of a file that is no UTF-8 has lone surrogates, which JSON can hold in escaped form alone.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            values = asdict(line)
            file.write(json.dumps(values | {CHECKSUM: _checksum(values)}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def verify_line(values: dict[str, Any]) -> None:
    """Raises `ValueError` where a line that `append_lines` wrote, parsed, is not as it was written."""
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if values.get(CHECKSUM, checksum := _checksum(rest)) != checksum:
        raise ValueError(f"its {CHECKSUM} is {values[CHECKSUM]} and should be {checksum}")


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values).encode())


def truncate_torn_line(path: Path) -> None:
    """Removes a last line that an interruption has left without its end."""
    contents = path.read_bytes()
    if contents and not contents.endswith(b"\n"):
        whole = contents.rfind(b"\n") + 1
        logger.warning("%s: the last line was cut off by an interruption; that utterance is done again", path)
        with temporary_name(path) as temporary:
            temporary.write_bytes(contents[:whole])
