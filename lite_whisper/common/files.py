"""Atomic file writes, working folders of interrupted runs, and checks of output paths."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

MAX_DIFFERENCES = 5  # listed in an error message
ORIGIN = "origin.json"  # records the settings of the results in a folder
MAX_NAME_BYTES = 220  # file systems allow 255, and temporary names are longer


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """
    Yields a temporary path next to `path`, which is renamed to `path` on success and removed on failure.

    The caller creates a file or folder there. Leftovers of killed runs are removed first.
    """
    temporary, replaced = (path.parent / f".{path.name}.{os.getpid()}.{end}" for end in ("tmp", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
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


def remove_leftovers(path: Path) -> None:
    """Removes temporary files of terminated processes next to `path` and restores a folder that one was replacing."""
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
    except (PermissionError, OverflowError):  # another user's process, or not a valid process ID
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def working_folder(path: Path, owner: bool = True) -> Iterator[Path]:
    """
    Yields the path of a folder next to `path` for intermediate results, which the caller may create.

    The folder survives failures and interruptions so that the next run can resume. The owner removes it on success, or
    if it holds no results yet. Each file in it records its own settings, or its folder does, see `record_origin`.

    Args:
        path (`Path`): the output of the run.
        owner (`bool`, *optional*, defaults to `True`): whether this process removes the folder; exactly one of the
            processes that share it should.
    """
    folder = path.parent / f"{path.name}.unfinished"
    if owner:
        remove_leftovers(path)
    try:
        yield folder
    except BaseException:
        if owner and folder.exists() and not _holds_results(folder):
            shutil.rmtree(folder)
        raise
    if owner and folder.exists():
        # Renamed first, because the next run could not tell the settings of a partly deleted folder.
        removed = path.parent / f".{path.name}.{os.getpid()}.tmp"
        folder.rename(removed)
        shutil.rmtree(removed)


def _holds_results(folder: Path) -> bool:
    """Whether there is any file other than `ORIGIN` and temporary files."""
    return any(path.is_file() and path.name != ORIGIN and path.name[0] != "." for path in folder.rglob("*"))


def record_origin(folder: Path, origin: dict[str, Any]) -> None:
    """
    Records the settings of a folder's results, and refuses a folder with results of other settings.

    Args:
        folder (`Path`): folder of files that do not record their settings themselves.
        origin (`dict[str, Any]`): all settings that affect the results.

    Raises:
        InputError: the folder holds results of other or unknown settings.
    """
    path = folder / ORIGIN
    if not folder.exists() or not _holds_results(folder):
        write_json(path, origin)
    elif path.exists():
        check_unchanged(read_json(path), origin, folder)
    else:
        raise InputError(
            f"{folder} does not record its settings, so its contents cannot be reused; remove the whole folder to "
            "start again"
        )


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """
    Reads a JSON object that an earlier run wrote.

    Args:
        path (`Path`): the file.
        advice (`str`, *optional*): end of the error message; by default, to remove the folder and start again.

    Raises:
        InputError: the file is missing or damaged.
    """
    advice = advice or f"remove {path.parent} to start again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged (not a JSON object); {advice}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON object atomically."""
    with temporary_name(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path, setting: str = "output") -> None:
    """
    Checks, before any work is done, that a file or folder can be written.

    Args:
        path (`Path`): the file or folder.
        setting (`str`, *optional*, defaults to `"output"`): the setting that holds the path.

    Raises:
        InputError: the name is invalid, or the parent folder is not writable.
    """
    if "\0" in str(path) or len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise InputError(f"{path.name[:40]!r}... is not a valid file name; choose a shorter one", setting)
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"cannot create files in {parent}; choose another location", setting)


def check_output_file(path: Path, setting: str = "output") -> None:
    """Like `check_writable`, and also refuses an existing folder."""
    check_writable(path, setting)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name", setting)


def check_output_folder(path: Path, overwrite: bool, marker: str = "config.json") -> None:
    """
    Checks, before any work is done, that an output folder can be written to `path`.

    Args:
        path (`Path`): the output folder.
        overwrite (`bool`): whether an existing folder may be replaced.
        marker (`str`, *optional*, defaults to `"config.json"`): a file that every output folder of this kind contains;
            folders without it are never replaced.

    Raises:
        InputError: the folder is not writable, exists without `overwrite` being set, or lacks `marker`.
    """
    check_writable(path)
    remove_leftovers(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not (path / marker).exists():
        raise InputError(f"{path} exists but is not a folder with {marker}; choose another output", setting="output")
    if not overwrite:
        raise InputError(f"{path} exists; choose another output or overwrite it", setting="overwrite")


def check_output(output: Path, source: str, overwrite: bool = False, marker: str = "config.json") -> None:
    """
    Checks, before any work is done, that an output folder can be written and is not the source model.

    Args:
        output (`Path`): the output folder.
        source (`str`): the model that is converted.
        overwrite (`bool`, *optional*, defaults to `False`): as in `check_output_folder`.
        marker (`str`, *optional*, defaults to `"config.json"`): as in `check_output_folder`.

    Raises:
        InputError: as in `check_output_folder`, or the output is the source.
    """
    check_output_folder(output, overwrite, marker)
    if output.resolve() == Path(source).resolve():
        raise InputError(f"the output {output} is the source model; choose another folder", setting="output")


def check_unchanged(stored: dict[str, Any], expected: dict[str, Any], path: Path, remove: str = "it") -> None:
    """
    Raises an error that lists the differences if stored results were created with other settings.

    Args:
        stored (`dict[str, Any]`): the settings of the stored results; keys that `expected` lacks are ignored.
        expected (`dict[str, Any]`): the current settings, compared after conversion to JSON.
        path (`Path`): the file or folder with the results.
        remove (`str`, *optional*, defaults to `"it"`): what the user should remove to start again.

    Raises:
        InputError: a setting differs.
    """
    expected = json.loads(json.dumps(expected))
    differences = [
        difference for name, value in expected.items() for difference in _differences(name, stored.get(name), value)
    ]
    if differences:
        more = f"; and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
        remove = "the whole folder" if path.is_dir() else remove
        raise InputError(
            f"{path} was created with other settings: {'; '.join(differences[:MAX_DIFFERENCES])}{more}. "
            f"Use the same settings, choose another file or output, or remove {remove} to start again"
        )


def _differences(name: str, stored: Any, expected: Any) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(expected, dict):
        for key in {**expected, **stored}:
            yield from _differences(f"{name} {key}", stored.get(key), expected.get(key))
    elif _is_rows(stored) and _is_rows(expected) and len(stored) == len(expected):
        for index, (before, after) in enumerate(zip(stored, expected, strict=True)):
            yield from _differences(f"{name} {index}", before, after)
    elif stored != expected:
        yield f"{name} was {stored}, now {expected}"


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)
