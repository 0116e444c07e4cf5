"""The command `lite-whisper profile`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..conversion.profile import profile
from ..lowrank.time_cost import DENSE
from . import exit_codes
from .options import add_computing


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    table, image = profile(arguments.model, arguments.output, arguments.batch_size, arguments.device, arguments.dtype)
    print(", ".join(f"{name} {value}" for name, value in table.machine.items()))
    print(f"encoder of stock Whisper {table.stock / 1e3:.2f} ms per window, without its projections ", end="")
    print(f"{table.rest / 1e3:.2f} ms in the inference mode")
    for (inputs, outputs), times in table.products.items():
        print(f"\n{inputs} -> {outputs}")
        for rank, time in times.items():
            print(f"{rank:>8}{time / 1e3:12.3f} ms{time / times[DENSE]:9.1%}")
    print(f"\nwritten to {arguments.output} and {image}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper profile`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure what the encoder of a Whisper takes on this machine, dense and at several ranks, for "
        "lite-whisper convert --target-speedup. Run it where the compressed model will run.",
    )
    parser.add_argument("model", help="Hub id or folder of the Whisper that will be compressed")
    parser.add_argument("--output", type=Path, default=Path("profile.json"), help="the table (default profile.json)")
    add_computing(parser, batch_size=1)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper profile") -> int:
    """Runs `lite-whisper profile`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(arguments))
