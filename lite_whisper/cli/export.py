"""The command `lite-whisper export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..export.export import FORMATS, ExportSettings, export
from . import exit_codes

WEIGHTS = ("*.onnx*", "*_model.bin", "model.bin", "model.safetensors")  # files that hold them


def precisions(text: str) -> tuple[str, ...]:
    """Names of precisions, separated by commas."""
    known = list(dict.fromkeys(name for of in FORMATS.values() for name in of.precisions))
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper export`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write a Whisper, compressed or not, as a folder for another runtime.",
    )
    parser.add_argument("model", help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="onnx: for ONNX Runtime, onnx-asr and transformers.js; faster-whisper: for its LiteWhisperModel; "
        "openvino: for openvino-genai and whisper.cpp",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--dtype",
        type=precisions,
        help="of the weights, separated by commas where a folder may hold several; "
        + "; ".join(
            f"{name}: {', '.join(of.precisions)} (default {','.join(of.usual)})" for name, of in FORMATS.items()
        ),
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder at --output")
    return parser


def run(settings: ExportSettings) -> None:
    """Exports, and prints what was written."""
    export(settings)
    for path in sorted(path for pattern in WEIGHTS for path in settings.output.rglob(pattern)):
        print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path.relative_to(settings.output)}")
    print(f"written to {settings.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper export") -> int:
    """Runs `lite-whisper export`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(ExportSettings(**vars(arguments))))
