"""The command `lite-whisper export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..export.export import PACKAGES, ExportSettings, export
from ..export.onnx_precision import SUFFIXES
from . import exit_codes


def precisions(text: str) -> tuple[str, ...]:
    """Names of precisions, separated by commas."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SUFFIXES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SUFFIXES)}")
    return names


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper export`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write a Whisper, compressed or not, as a folder for another runtime.",
    )
    parser.add_argument("model", help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument(
        "--format", choices=PACKAGES, required=True, help="onnx: for ONNX Runtime, onnx-asr and transformers.js"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--dtype",
        type=precisions,
        default=ExportSettings.dtype,
        help=f"of the weights, one or more of {', '.join(SUFFIXES)}, separated by commas "
        f"(default {','.join(ExportSettings.dtype)})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder at --output")
    return parser


def run(settings: ExportSettings) -> None:
    """Exports, and prints what was written."""
    export(settings)
    for path in sorted(settings.output.rglob("*.onnx*")):
        print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path.relative_to(settings.output)}")
    print(f"written to {settings.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper export") -> int:
    """Runs `lite-whisper export`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(ExportSettings(**vars(arguments))))
