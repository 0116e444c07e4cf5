"""Writing results so that nothing half-written is ever found under their name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` for a file or folder, renamed to `path` on success and removed on any failure."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if path.is_dir():
            replaced = path.parent / f".{path.name}.{os.getpid()}.old"
            path.rename(replaced)
            temporary.rename(path)
            shutil.rmtree(replaced)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def check_output_folder(path: Path, overwrite: bool) -> None:
    """
    Makes sure, before any work is done, that a model folder may be written to `path`.

    Raises:
        InputError: it exists and `overwrite` is not set, or what would be overwritten is not a model folder.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not (path / "config.json").exists():
        raise InputError(f"{path} exists and is not a model folder; choose another --output")
    if not overwrite:
        raise InputError(f"{path} exists; choose another --output, or replace it with --overwrite")
