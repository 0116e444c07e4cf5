"""The command `lite-whisper family`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..conversion.family import SUFFIXES, checkpoint_name, family
from ..conversion.settings import ConversionSettings
from . import exit_codes
from .convert import add_conversion, print_conversion, settings_from
from .options import add_hub, checked
from .publish import check_login, publish_folder


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper family`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Convert a Whisper into its checkpoints acc, plain and fast from one calibration. "
        "The other options are those of lite-whisper convert.",
    )
    parser.add_argument("--base", required=True, help="Hub id or folder of a Whisper, for example openai/whisper-small")
    parser.add_argument("--output", type=Path, required=True, help="the folder in which the three are written")
    add_conversion(parser)
    parser.add_argument("--push-to-hub", metavar="ORG", help="publish the three under this user or organisation")
    add_hub(parser)
    return parser


def run(arguments: argparse.Namespace, settings: ConversionSettings) -> None:
    """Converts, reports and publishes one checkpoint after the other."""
    owner = arguments.push_to_hub
    if owner:
        for preset in SUFFIXES:
            check_login(arguments, f"{owner}/{checkpoint_name(settings.model, preset)}")
    for folder, conversion in family(settings):
        if conversion is None:
            print(f"{folder} exists and is kept")
        else:
            print_conversion(conversion)
        if owner:
            publish_folder(arguments, folder, f"{owner}/{folder.name}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper family") -> int:
    """Runs `lite-whisper family`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    settings = checked(parser, lambda: settings_from(arguments, arguments.base, arguments.output))
    return exit_codes.run(parser, lambda: run(arguments, settings))
