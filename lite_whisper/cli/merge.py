"""The command `lite-whisper merge`."""

import argparse
from collections.abc import Sequence

from ..conversion.rewriting import merge
from . import exit_codes
from .options import add_model_folder, add_output


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper merge`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Merge the low-rank factors of a compressed model into dense layers and save it as a stock "
        "Whisper, for programs that support only stock Whisper.",
    )
    add_model_folder(parser, "compressed model")
    add_output(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper merge") -> int:
    """Runs `lite-whisper merge`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)

    def run() -> None:
        merge(arguments.model, arguments.output, arguments.overwrite)
        print(f"written to {arguments.output}")

    return exit_codes.run(parser, run)
