"""The command `lite-whisper profile`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..conversion.profile import profile
from ..lowrank.time_cost import DENSE
from . import exit_codes
from .options import add_batch_size, add_device, add_dtype, add_model_folder


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    table, image = profile(arguments.model, arguments.output, arguments.batch_size, arguments.device, arguments.dtype)
    print(", ".join(f"{name} {value}" for name, value in table.machine.items()))
    print(f"encoder of stock Whisper: {table.stock / 1e3:.2f} ms per window; everything but its projections, ", end="")
    print(f"in optimised inference: {table.rest / 1e3:.2f} ms")
    for (inputs, outputs), times in table.products.items():
        print(f"\n{inputs} -> {outputs}")
        for rank, time in times.items():
            print(f"{rank:>8}{time / 1e3:12.3f} ms{time / times[DENSE]:9.1%}")
    print(f"\nwritten to {arguments.output} and {image}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper profile`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Benchmark the encoder layers of a Whisper on this machine, dense and at several ranks, for "
        "lite-whisper convert --target-speedup. Run it on the target machine.",
    )
    add_model_folder(parser, "Whisper to be compressed")
    parser.add_argument(
        "--output", type=Path, default=Path("profile.json"), help="file to write (default: %(default)s)"
    )
    add_device(parser)
    add_dtype(parser, "float32")
    add_batch_size(parser, 1)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper profile") -> int:
    """Runs `lite-whisper profile`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(arguments))
