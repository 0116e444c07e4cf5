"""Writing results so that nothing half-written is ever found under their name."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

MOST = 5  # differences that are named
ORIGIN = "origin.json"  # in a folder of what took long, says from what it was made
LONGEST_NAME = 220  # bytes; file systems take 255, and a temporary name is longer


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """
    Gives a name beside `path` for a file or folder, renamed to `path` on success and removed on any failure.

    What runs that were killed left there is removed first.
    """
    temporary, replaced = (path.parent / f".{path.name}.{os.getpid()}.{end}" for end in ("tmp", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path)
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
            _remove(left_over)


def tidy(path: Path) -> None:
    """Removes what processes that are gone left beside `path`; a folder that one was about to replace is put back."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*"):
        process, _, end = left_over.name.removeprefix(f".{path.name}.").partition(".")
        if not process.isdigit() or end not in ("tmp", "old"):
            continue
        if int(process) != os.getpid() and _is_alive(int(process)):
            continue
        if end == "old" and not path.exists():
            left_over.rename(path)
        else:
            _remove(left_over)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user, or no process at all
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def unfinished(path: Path, owner: bool = True) -> Iterator[Path]:
    """
    Names a folder beside `path` for what took long to compute, which may be created there.

    It outlasts a failure or an interruption, so that the next run can go on from it, and is removed on success, and
    where it holds no result yet, by its owner where several processes use it. Every file in it holds its own origin, or
    its folder has one, see `claim`.
    """
    folder = path.parent / f"{path.name}.unfinished"
    if owner:
        tidy(path)
    try:
        yield folder
    except BaseException:
        if owner and folder.exists() and not _holds_results(folder):
            shutil.rmtree(folder)
        raise
    if owner and folder.exists():
        # As a whole: of a part of it, the next run would not know what it was made from.
        gone = path.parent / f".{path.name}.{os.getpid()}.tmp"
        folder.rename(gone)
        shutil.rmtree(gone)


def _holds_results(folder: Path) -> bool:
    """Whether there is a file other than an origin, or what a kill has left of one."""
    return any(path.is_file() and path.name != ORIGIN and path.name[0] != "." for path in folder.rglob("*"))


def record_origin(folder: Path, origin: dict[str, Any]) -> None:
    """
    Makes a folder the place for results of one origin, which is written into it; other results are refused.

    Args:
        folder (`Path`): for files that do not tell by themselves what they were made from.
        origin (`dict[str, Any]`): what decides the outcome.

    Raises:
        InputError: the folder holds results of another origin, or of an unknown one.
    """
    kept = folder / ORIGIN
    if not folder.exists() or not _holds_results(folder):
        write_kept(kept, origin)
    elif kept.exists():
        check_same(read_kept(kept), origin, folder)
    else:
        raise InputError(
            f"{folder} does not say what it was made from, so nothing in it can be used; remove the whole folder to "
            "begin anew"
        )


def read_kept(path: Path, advice: str = "") -> dict[str, Any]:
    """
    Reads a JSON object that an earlier run has left.

    Raises:
        InputError: it is missing or damaged; the message ends with the advice, by default to begin anew.
    """
    advice = advice or f"remove {path.parent} to begin anew"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(kept, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object); {advice}")
    return kept


def write_kept(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON object for a later run."""
    with temporary_name(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path, setting: str = "output") -> None:
    """
    Makes sure, before any work is done, that a file or folder can be written.

    Args:
        path (`Path`): of the file or folder.
        setting (`str`, *optional*, defaults to `"output"`): which names it.

    Raises:
        InputError: it has no valid name, or nothing can be written into the folder above it.
    """
    if "\0" in str(path) or len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{path.name[:40]!r}... is no name for a file; choose a shorter one", setting)
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"nothing can be written below {parent}; choose another place", setting)


def check_output_file(path: Path, setting: str = "output") -> None:
    """`check_writable` of a file, which may exist, but not as a folder."""
    check_writable(path, setting)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file", setting)


def check_output_folder(path: Path, overwrite: bool, known_by: str = "config.json") -> None:
    """
    Makes sure, before any work is done, that a folder may be written to `path`.

    Raises:
        InputError: it exists and `overwrite` is not set, or what would be overwritten is not a folder of that kind,
            `known_by` a file that every one of them holds.
    """
    check_writable(path)
    tidy(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not (path / known_by).exists():
        raise InputError(f"{path} exists and is not a folder with {known_by}; choose another output", setting="output")
    if not overwrite:
        raise InputError(f"{path} exists; choose another output, or have it replaced", setting="overwrite")


def check_output(output: Path, source: str, overwrite: bool = False, known_by: str = "config.json") -> None:
    """
    Makes sure, before any work is done, that a folder can be written.

    Args:
        output (`Path`): the folder.
        source (`str`): the model that it is made from.
        overwrite (`bool`): whether a folder that exists may be replaced.
        known_by (`str`): a file that every folder of its kind holds; others are not replaced.

    Raises:
        InputError: it exists, cannot be written, or is the source itself.
    """
    check_output_folder(output, overwrite, known_by)
    if output.resolve() == Path(source).resolve():
        raise InputError(f"the output is {source} itself; choose another folder", setting="output")


def check_same(kept: dict[str, Any], wanted: dict[str, Any], path: Path, remove: str = "it") -> None:
    """
    Refuses to go on with what was made with other settings, and says with which.

    Args:
        kept (`dict[str, Any]`): what it was made with.
        wanted (`dict[str, Any]`): what it should have been made with, which is compared as JSON has it; other keys of
            `kept` do not matter.
        path (`Path`): the file or folder.
        remove (`str`, *optional*, defaults to `"it"`): what to remove to begin anew.

    Raises:
        InputError: they differ.
    """
    wanted = json.loads(json.dumps(wanted))
    differences = [
        difference for name, value in wanted.items() for difference in _differences(name, kept.get(name), value)
    ]
    if differences:
        more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
        remove = "the whole folder" if path.is_dir() else remove
        raise InputError(
            f"{path} was made from something else: {'; '.join(differences[:MOST])}{more}. "
            f"Give the same settings, or another file or output, or remove {remove} to begin anew"
        )


def _differences(name: str, kept: Any, wanted: Any) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(wanted, dict):
        for key in {**wanted, **kept}:
            yield from _differences(f"{name} {key}", kept.get(key), wanted.get(key))
    elif _is_rows(kept) and _is_rows(wanted) and len(kept) == len(wanted):
        for index, (there, here) in enumerate(zip(kept, wanted, strict=True)):
            yield from _differences(f"{name} {index}", there, here)
    elif kept != wanted:
        yield f"{name} {kept} there, {wanted} here"


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)
