"""`compression.json`: what was done to a model, in its folder."""

from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_kept, write_kept

COMPRESSION = "compression.json"
ADVICE = "convert again, or copy the file from where the model came from"

KINDS: dict[str, tuple[type, str]] = {
    "base_model": (str, "text"),
    "base_card": (dict, "object"),
    "upgraded_from": (str, "text"),
    "low_rank_config": (list, "list"),
    "constant_padding": (bool, "true or false"),
    "expected": (dict, "object"),  # of a model that is still to be made: what its conversion takes
    **dict.fromkeys(("recipe", "calibration", "recovery", "evaluation", "before", "after"), (dict, "object")),
}
"""What each entry is, in Python and in the words of JSON."""


def read_compression(folder: Path) -> dict[str, Any] | None:
    """
    What a model folder says of how it was made; None where it says nothing.

    Raises:
        InputError: the file is damaged, or an entry is of another kind than it should be.
    """
    path = folder / COMPRESSION
    if not path.exists():
        return None
    report = read_kept(path, ADVICE)
    if "base_model" not in report:
        raise InputError(f"{path} does not name the base_model; {ADVICE}")
    for name, (kind, what) in KINDS.items():
        if not isinstance(report.get(name, kind()), kind):
            raise InputError(f"{name} in {path} is no {what}; {ADVICE}")
    for part in ("calibration", "recovery"):
        if "num_samples" in report.get(part, {}):  # its name in earlier versions
            report[part]["num_windows"] = report[part].pop("num_samples")
    return report


def write_compression(folder: Path, report: dict[str, Any]) -> None:
    """Writes into a model folder how it was made."""
    write_kept(folder / COMPRESSION, report)


def public_name(source: str) -> str:
    """What a published file may say of a model or dataset: the Hub id, but of a path on this machine only the name."""
    path = Path(source)
    # A dataset may be gone by now where its moments were kept.
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source
