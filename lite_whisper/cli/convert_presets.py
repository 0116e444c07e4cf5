"""The command `lite-whisper convert-presets`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..conversion.presets import SUFFIXES, checkpoint_name, convert_presets
from ..conversion.settings import ConversionSettings
from . import exit_codes
from .convert import add_conversion, print_conversion, settings_from
from .options import add_base_model, add_hub, add_overwrite, checked
from .publish import check_login, publish_folder


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper convert-presets`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress a Whisper to the preset sizes acc, plain and fast from one calibration. "
        "The other options are those of lite-whisper convert.",
    )
    add_base_model(parser, required=True)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder in which the three model folders are written"
    )
    add_overwrite(parser)
    add_conversion(parser)
    hub = parser.add_argument_group("publishing")
    hub.add_argument("--push-to-hub", metavar="ORG", help="publish the three models under this user or organisation")
    add_hub(hub)
    return parser


def run(arguments: argparse.Namespace, settings: ConversionSettings) -> None:
    """Converts, reports and publishes one model after the other."""
    owner = arguments.push_to_hub
    if owner:
        for preset in SUFFIXES:
            check_login(arguments, f"{owner}/{checkpoint_name(settings.base_model, preset)}")
    for folder, conversion in convert_presets(settings):
        if conversion is None:
            print(f"{folder} already exists; skipped")
        else:
            print_conversion(conversion)
        if owner:
            publish_folder(arguments, folder, f"{owner}/{folder.name}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper convert-presets") -> int:
    """Runs `lite-whisper convert-presets`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    settings = checked(parser, lambda: settings_from(arguments))
    return exit_codes.run(parser, lambda: run(arguments, settings))
