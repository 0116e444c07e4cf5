"""The command `lite-whisper pad`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.processes import is_main_process
from ..conversion.padding import PaddingSettings, pad_model
from ..conversion.settings import NOISE
from . import exit_codes
from .options import add_device, noise_range, positive


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper pad`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Let a Whisper, compressed or not, know what its encoder computes at the silence behind a clip, so "
        "that this is not computed any more. Audio without transcripts is needed.",
    )
    parser.add_argument("model", help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument("--dataset", nargs="+", action="extend", required=True, help="audio, as in convert")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    parser.add_argument("--num-samples", type=positive, default=100, help="windows of audio (default 100)")
    parser.add_argument(
        "--noise", type=noise_range, default=NOISE, metavar="LOW:HIGH", help="as in convert (default 0:40)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples, the noise and their lengths (default 0)")
    parser.add_argument("--batch-size", type=positive, default=4, help="windows that run at once (default 4)")
    add_device(parser)
    return parser


def run(settings: PaddingSettings) -> None:
    """Adds what the model is to know, and prints what came of it."""
    added = pad_model(settings)
    if is_main_process():
        print(f"written to {settings.output} (the encoder has {added / 1e6:.2f} M parameters more)")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper pad") -> int:
    """Runs `lite-whisper pad`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(PaddingSettings(**vars(arguments))))
