"""The command `lite-whisper transcribe`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..transcription.formats import TRANSCRIPT_FORMATS
from ..transcription.output import Output
from ..transcription.transcribe import TranscriptionSettings, transcribe_to_output
from . import exit_codes
from .options import DTYPES, add_batch_size, add_decoding, add_device, add_dtype, add_overwrite, checked


def build_parser(program: str) -> argparse.ArgumentParser:
    """Builds the parser of `lite-whisper transcribe`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe any number of recordings of any length. Run the same command again to resume an "
        "interrupted run.",
    )
    parser.add_argument("sources", nargs="+", help="files, folders, patterns such as 'calls/**/*.wav', or Hub datasets")
    parser.add_argument("--model", required=True, help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="file to write: .jsonl with one line per recording, or .txt, .srt or .vtt for a single recording; with "
        "--format, a folder with one file per recording",
    )
    parser.add_argument("--format", choices=TRANSCRIPT_FORMATS, help="format of the files in the output folder")
    add_overwrite(parser)
    parser.add_argument(
        "--timestamps",
        choices=("none", "segment", "word"),
        default=TranscriptionSettings.timestamps,
        help="granularity of the timestamps (default: %(default)s)",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="decode recordings longer than a window sequentially, window by window, instead of splitting them at "
        "silences; slower",
    )
    add_decoding(parser)
    add_device(parser)
    add_dtype(parser, TranscriptionSettings.dtype, (*DTYPES, "int8"))
    add_batch_size(parser, TranscriptionSettings.batch_size)
    parser.add_argument(
        "--backend",
        choices=("transformers", "ctranslate2", "auto"),
        default=TranscriptionSettings.backend,
        help="engine that runs the model; the ctranslate2 decoder is faster on CPUs and requires "
        "lite-whisper[faster-whisper]; auto picks the faster one on the first recording (default: %(default)s)",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="distribute the work over a Ray cluster (at RAY_ADDRESS, or started on this machine); every node needs "
        "lite-whisper and the files at the same paths",
    )
    return parser


def settings_from(arguments: argparse.Namespace) -> TranscriptionSettings:
    """Builds the settings from the parsed options."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("output", "format")}
    return TranscriptionSettings(output=Output.from_path(arguments.output, arguments.format), **values)


def run(settings: TranscriptionSettings) -> None:
    """Transcribes and prints a summary."""
    summary = transcribe_to_output(settings)
    unreadable = f", {summary.failed} could not be read" if summary.failed else ""
    fallbacks = f", {summary.fallbacks} of them with the fallback to all positions" if summary.fallbacks else ""
    if summary.backend_choice:
        print(summary.backend_choice)
    print(
        f"{summary.transcribed} recording{'' if summary.transcribed == 1 else 's'} transcribed{fallbacks}{unreadable}"
    )
    print(f"written to {settings.output.path}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper transcribe") -> int:
    """Runs `lite-whisper transcribe`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    settings = checked(parser, lambda: settings_from(arguments))
    return exit_codes.run(parser, lambda: run(settings))
