"""Converts a base model to the three preset sizes from one calibration."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..common.errors import InputError
from ..common.files import check_unchanged, working_folder
from ..models.compression_json import COMPRESSION, public_name, read_compression
from .calibration import calibration_settings
from .convert import Conversion, convert
from .settings import ConversionSettings

SUFFIXES: dict[Literal["acc", "plain", "fast"], str] = {"acc": "-acc", "plain": "", "fast": "-fast"}
"""Suffix of a checkpoint's name for each preset."""


def checkpoint_name(base: str, preset: Literal["acc", "plain", "fast"]) -> str:
    """The name of a checkpoint, in the form of the published ones, e.g. lite-whisper-small-acc."""
    return f"lite-{Path(public_name(base)).name}{SUFFIXES[preset]}"


def convert_presets(settings: ConversionSettings) -> Iterator[tuple[Path, Conversion | None]]:
    """
    Converts a base model to the presets acc, plain and fast. Existing checkpoints are skipped.

    Args:
        settings (`ConversionSettings`): settings without a size; the three model folders are written into `output`.

    Yields:
        The folder of each checkpoint once it is complete, and its conversion, or None if it already existed.

    Raises:
        InputError: as in `convert`, or an existing checkpoint was made with other settings.
    """
    with working_folder(settings.output / "calibration") as work:
        for preset in SUFFIXES:
            folder = settings.output / checkpoint_name(settings.base_model, preset)
            calibration_file = settings.calibration_file or work / "calibration.safetensors"
            preset_settings = replace(settings, preset=preset, output=folder, calibration_file=calibration_file)
            if settings.overwrite or not (folder / COMPRESSION).exists():
                yield folder, convert(preset_settings)
            else:
                _check_existing(preset_settings)
                yield folder, None


def _check_existing(settings: ConversionSettings) -> None:
    """Checks that the existing checkpoint at the output was made with these settings."""
    path = settings.output / COMPRESSION
    report = read_compression(settings.output) or {}
    if not isinstance(report.get("calibration"), dict) or not isinstance(report.get("recipe"), dict):
        raise InputError(
            f"{path} does not record how the checkpoint was made; remove {settings.output} to convert again"
        )
    wanted = calibration_settings(settings, report["calibration"].get("encoder_weights"))
    wanted["datasets"] = [public_name(source) for source in settings.dataset or ()]
    wanted["rank_multiple"] = settings.rank_multiple
    check_unchanged({**report["calibration"], **report["recipe"]}, wanted, path)
