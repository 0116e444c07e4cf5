"""Append-only files of JSON lines, each with a checksum."""

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
    Appends dataclass instances to a JSON lines file, each with a checksum, and flushes the file to disk.

    Args:
        path (`Path`): the file, created if it does not exist.
        lines (`Iterable`): dataclass instances.
    """
    # File names that are not valid UTF-8 contain lone surrogates, which JSON can only represent escaped.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            values = asdict(line)
            file.write(json.dumps(values | {CHECKSUM: _checksum(values)}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def verify_line(values: dict[str, Any]) -> None:
    """Raises `ValueError` if a parsed line does not match its checksum; lines without a checksum pass."""
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if values.get(CHECKSUM, checksum := _checksum(rest)) != checksum:
        raise ValueError(f"{CHECKSUM} is {values[CHECKSUM]}, expected {checksum}")


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values).encode())


def truncate_torn_line(path: Path) -> None:
    """Removes an incomplete last line, as an interrupted write leaves it."""
    contents = path.read_bytes()
    if contents and not contents.endswith(b"\n"):
        end = contents.rfind(b"\n") + 1
        logger.warning(
            "%s: removed an incomplete last line left by an interrupted run; its recording is processed again", path
        )
        with temporary_name(path) as temporary:
            temporary.write_bytes(contents[:end])
