"""The command `lite-whisper precompute-padding`."""

import argparse
from collections.abc import Sequence

from ..common.processes import is_main_process
from ..conversion.padding import PaddingSettings, precompute_padding
from . import exit_codes
from .options import (
    add_batch_size,
    add_device,
    add_model_folder,
    add_output,
    add_training_audio,
)


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper precompute-padding`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Precompute the encoder's response to silence, so that padded positions are skipped and short "
        "clips run faster. Takes audio without transcripts and any Whisper, compressed or not.",
    )
    add_model_folder(parser)
    add_output(parser)
    add_training_audio(parser, PaddingSettings.num_windows, PaddingSettings.noise, PaddingSettings.seed)
    add_batch_size(parser, PaddingSettings.batch_size)
    add_device(parser)
    return parser


def run(settings: PaddingSettings) -> None:
    """Precomputes the padding, and prints the change in size."""
    added = precompute_padding(settings)
    if is_main_process():
        print(f"written to {settings.output} (adds {added / 1e6:.2f} M parameters to the encoder)")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper precompute-padding") -> int:
    """Runs `lite-whisper precompute-padding`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(PaddingSettings(**vars(arguments))))
