"""`compression.json`: what was done to a model, in its folder."""

from pathlib import Path
from typing import Any

from ..common.files import read_kept, write_kept

COMPRESSION = "compression.json"


def read_compression(folder: Path) -> dict[str, Any] | None:
    """
    What a model folder says of how it was made; None where it says nothing.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / COMPRESSION
    return read_kept(path, "convert again, or copy the file from where the model came from") if path.exists() else None


def write_compression(folder: Path, report: dict[str, Any]) -> None:
    """Writes into a model folder how it was made."""
    write_kept(folder / COMPRESSION, report)


def public_name(source: str) -> str:
    """What a published file may say of a model or dataset: the Hub id, but of a path on this machine only the name."""
    path = Path(source)
    # A dataset may be gone by now where its moments were kept.
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source
