"""The command `lite-whisper transcribe`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..transcription.formats import FORMATS
from ..transcription.output import Output
from ..transcription.transcribe import TranscriptionSettings, transcribe_to_output
from . import exit_codes
from .options import add_computing, add_decoding, checked


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper transcribe`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe any number of recordings of any length. A run that was interrupted goes on when the "
        "same command is given again.",
    )
    parser.add_argument("sources", nargs="+", help="files, folders, patterns such as 'calls/**/*.wav', or Hub datasets")
    parser.add_argument("--model", required=True, help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="a file .jsonl, with a line for each recording; a file .txt, .srt or .vtt, for one recording; or, with "
        "--format, a folder in which each recording has a file",
    )
    parser.add_argument("--format", choices=FORMATS, help="of the files in a folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --output")
    parser.add_argument(
        "--timestamps", choices=("none", "segment", "word"), default="segment", help="of the segments (default segment)"
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="do not cut recordings that are longer than a window, but let Whisper go through them window by window; "
        "slower",
    )
    add_decoding(parser)
    add_computing(parser, batch_size=8, int8=True)
    parser.add_argument(
        "--backend",
        choices=("transformers", "ctranslate2", "auto"),
        default="transformers",
        help="what computes: transformers (the default); ctranslate2, whose decoder is faster on CPUs and which "
        "needs lite-whisper[faster-whisper]; or auto, the one that takes less for the first recording",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="share the work over the devices of a Ray cluster (that of RAY_ADDRESS, or one started on this machine), "
        "whose nodes need lite-whisper and see the files under the same names",
    )
    return parser


def settings_from(arguments: argparse.Namespace) -> TranscriptionSettings:
    """The settings that the arguments make up."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("output", "format")}
    return TranscriptionSettings(output=Output.named(arguments.output, arguments.format), **values)


def run(settings: TranscriptionSettings) -> None:
    """Transcribes, and prints what came of it."""
    counts = transcribe_to_output(settings)
    unreadable = f", {counts.failed} could not be read" if counts.failed else ""
    retried = f", {counts.retried} of them again with all positions, as they looked broken" if counts.retried else ""
    if counts.choice:
        print(counts.choice)
    print(f"{counts.transcribed} recording{'' if counts.transcribed == 1 else 's'} transcribed{retried}{unreadable}")
    print(f"written to {settings.output.path}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper transcribe") -> int:
    """Runs `lite-whisper transcribe`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    settings = checked(parser, lambda: settings_from(arguments))
    return exit_codes.run(parser, lambda: run(settings))
