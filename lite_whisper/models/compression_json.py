"""Reading and writing of `compression.json`, which records how a compressed model was made."""

from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json, write_json

COMPRESSION = "compression.json"
ADVICE = "convert again, or copy the file from the original model folder"

ENTRY_TYPES: dict[str, tuple[type, str]] = {
    "base_model": (str, "a string"),
    "base_card": (dict, "an object"),
    "upgraded_from": (str, "a string"),
    "low_rank_config": (list, "a list"),
    "constant_padding": (bool, "true or false"),
    "expected": (dict, "an object"),  # estimated time and memory of a conversion that has not run yet
    **dict.fromkeys(("recipe", "calibration", "recovery", "evaluation", "before", "after"), (dict, "an object")),
}
"""The type of each entry, in Python and in JSON."""


def read_compression(folder: Path) -> dict[str, Any] | None:
    """
    Reads the `compression.json` of a model folder; None if there is none.

    Raises:
        InputError: the file is damaged, or an entry has the wrong type.
    """
    path = folder / COMPRESSION
    if not path.exists():
        return None
    report = read_json(path, ADVICE)
    if "base_model" not in report:
        raise InputError(f"{path} does not name the base_model; {ADVICE}")
    for name, (entry_type, description) in ENTRY_TYPES.items():
        if not isinstance(report.get(name, entry_type()), entry_type):
            raise InputError(f"{name} in {path} is not {description}; {ADVICE}")
    for part in ("calibration", "recovery"):
        if "num_samples" in report.get(part, {}):  # its name in earlier versions
            report[part]["num_windows"] = report[part].pop("num_samples")
    return report


def write_compression(folder: Path, report: dict[str, Any]) -> None:
    """Writes `compression.json` into a model folder."""
    write_json(folder / COMPRESSION, report)


def public_name(source: str) -> str:
    """The name of a model or dataset for published files: its Hub id, or the last part of a local path."""
    path = Path(source)
    # A calibration file may outlive its dataset, so the path need not exist.
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source
