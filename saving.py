"""Writing results so that nothing half-written is ever found under their name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` for a file or folder, renamed to `path` on success and removed on any failure."""
    temporary, replaced = (path.parent / f".{path.name}.{os.getpid()}.{end}" for end in ("tmp", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if path.is_dir():
            path.rename(replaced)
            temporary.rename(path)
        else:
            temporary.replace(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        for left_over in (temporary, replaced):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink(missing_ok=True)


@contextmanager
def unfinished(path: Path, owner: bool = True) -> Iterator[Path]:
    """
    Names a folder beside `path` for what took long to compute, which may be created there.

    It outlasts a failure or an interruption, so that the next run can go on from it, and is removed on success, by its
    owner where several processes use it.
    """
    folder = path.parent / f"{path.name}.unfinished"
    try:
        yield folder
    except BaseException:
        if owner and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    if owner and folder.exists():
        shutil.rmtree(folder)


def check_writable(path: Path) -> None:
    """Raises `InputError` where nothing can be written to `path` because of the folder above."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"nothing can be written below {parent}; choose another --output")


def check_output_folder(path: Path, overwrite: bool, known_by: str = "config.json") -> None:
    """
    Makes sure, before any work is done, that a folder may be written to `path`.

    Raises:
        InputError: it exists and `overwrite` is not set, or what would be overwritten is not a folder of that kind,
            `known_by` a file that every one of them holds.
    """
    check_writable(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not (path / known_by).exists():
        raise InputError(f"{path} exists and is not a folder with {known_by}; choose another --output")
    if not overwrite:
        raise InputError(f"{path} exists; choose another --output, or replace it with --overwrite")


def check_same(kept: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuses to go on with a file that was made with other settings, and says with which."""
    differences = [
        f"{name} {kept.get(name)} there, {wanted[name]} here" for name in wanted if kept.get(name) != wanted[name]
    ]
    if differences:
        raise InputError(
            f"{path} was made from something else: {'; '.join(differences)}. "
            "Give the same options, or another file or output, or remove it to begin anew"
        )
