"""The three checkpoints of a base model, from one calibration."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..common.errors import InputError
from ..common.files import check_same, unfinished
from ..models.compression_json import COMPRESSION, public_name, read_compression
from .calibration import calibration_settings
from .convert import Conversion, convert
from .settings import ConversionSettings

SUFFIXES: dict[Literal["acc", "plain", "fast"], str] = {"acc": "-acc", "plain": "", "fast": "-fast"}
"""What the name of a checkpoint ends in, by its size."""


def checkpoint_name(base: str, preset: Literal["acc", "plain", "fast"]) -> str:
    """What a checkpoint of a base model is called, as the published ones are: lite-whisper-small-acc."""
    return f"lite-{Path(public_name(base)).name}{SUFFIXES[preset]}"


def convert_presets(settings: ConversionSettings) -> Iterator[tuple[Path, Conversion | None]]:
    """
    Converts a base model into its three checkpoints; those that exist are kept.

    Args:
        settings (`ConversionSettings`): without a size; `output` is the folder in which the three folders are written.

    Yields:
        One by one, when they are there, the folder of a checkpoint and its conversion, which is None where it existed.

    Raises:
        InputError: as in `convert`, or a checkpoint that exists was made with other settings.
    """
    with unfinished(settings.output / "calibration") as work:
        for preset in SUFFIXES:
            folder = settings.output / checkpoint_name(settings.base_model, preset)
            calibration_file = settings.calibration_file or work / "calibration.safetensors"
            of_preset = replace(settings, preset=preset, output=folder, calibration_file=calibration_file)
            if settings.overwrite or not (folder / COMPRESSION).exists():
                yield folder, convert(of_preset)
            else:
                _check_kept(of_preset)
                yield folder, None


def _check_kept(settings: ConversionSettings) -> None:
    """Makes sure that the checkpoint at the output was made with these settings."""
    path = settings.output / COMPRESSION
    kept = read_compression(settings.output) or {}
    if not isinstance(kept.get("calibration"), dict) or not isinstance(kept.get("recipe"), dict):
        raise InputError(f"{path} does not say how the checkpoint was made; remove {settings.output} to make it anew")
    wanted = calibration_settings(settings, kept["calibration"].get("encoder_weights"))
    wanted["datasets"] = [public_name(source) for source in settings.dataset or ()]
    wanted["rank_multiple"] = settings.rank_multiple
    check_same({**kept["calibration"], **kept["recipe"]}, wanted, path)
