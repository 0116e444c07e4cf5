"""The command `lite-whisper upgrade`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..conversion.rewriting import upgrade
from . import exit_codes
from .options import add_base_model, add_hub, add_model_folder, add_output
from .publish import check_login, publish_folder


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper upgrade`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Rewrite a checkpoint of efficient-speech/ as a complete model folder: with processor, full "
        "generation settings, all Auto classes and tied weights.",
    )
    add_model_folder(parser, "published checkpoint")
    add_base_model(parser, default="the one the checkpoint was made from, if known")
    add_output(parser)
    hub = parser.add_argument_group("publishing")
    hub.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the result to this repository")
    add_hub(hub)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Upgrades, prints and publishes."""
    if arguments.push_to_hub:
        check_login(arguments, arguments.push_to_hub)
    upgrade(arguments.model, arguments.base_model, arguments.output, arguments.overwrite)
    print(f"written to {arguments.output}")
    if arguments.push_to_hub:
        publish_folder(arguments, Path(arguments.output), arguments.push_to_hub)


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper upgrade") -> int:
    """Runs `lite-whisper upgrade`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(arguments))
