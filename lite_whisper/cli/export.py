"""The command `lite-whisper export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..export.export import EXPORT_FORMATS, ExportSettings, export
from . import exit_codes
from .options import add_model_folder, add_overwrite

WEIGHT_FILES = ("*.onnx*", "*_model.bin", "model.bin", "model.safetensors")


def dtypes(text: str) -> tuple[str, ...]:
    """Data types, parsed from names separated by commas."""
    known = list(dict.fromkeys(name for export_format in EXPORT_FORMATS.values() for name in export_format.dtypes))
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
    return names


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper export`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Export a Whisper, compressed or not, to a folder for another runtime.",
    )
    add_model_folder(parser)
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        required=True,
        help="onnx: for ONNX Runtime, onnx-asr and transformers.js; faster-whisper: for "
        "lite_whisper.integrations.faster_whisper; openvino: for openvino-genai and whisper.cpp",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    supported = "; ".join(
        f"{name}: {', '.join(export_format.dtypes)} (default: {','.join(export_format.default_dtypes)})"
        for name, export_format in EXPORT_FORMATS.items()
    )
    parser.add_argument(
        "--dtype",
        type=dtypes,
        help=f"data type of the weights, several separated by commas if the format allows; {supported}",
    )
    add_overwrite(parser)
    return parser


def run(settings: ExportSettings) -> None:
    """Exports the model and prints the sizes of the weight files."""
    export(settings)
    for path in sorted(path for pattern in WEIGHT_FILES for path in settings.output.rglob(pattern)):
        print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path.relative_to(settings.output)}")
    print(f"written to {settings.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper export") -> int:
    """Runs `lite-whisper export`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(ExportSettings(**vars(arguments))))
