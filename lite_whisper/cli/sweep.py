"""The command `lite-whisper sweep`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.processes import is_main_process
from ..conversion.settings import ConversionSettings
from ..conversion.sweep import Sweep, check_sweep, sweep
from . import exit_codes
from .convert import add_conversion, settings_from
from .options import add_base_model, add_overwrite, checked, ratios


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper sweep`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure the word error rate of both recipes at several encoder sizes, from one calibration, and "
        "write a table (sweep.csv) and a plot (pareto.png). No model is saved. The options of calibration, computation "
        "and evaluation are those of lite-whisper convert.",
    )
    add_base_model(parser, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the table and the plot")
    add_overwrite(parser)
    parser.add_argument(
        "--ratios",
        type=ratios,
        required=True,
        metavar="0.3,0.4,...",
        help="fractions of the encoder's parameters to keep, separated by commas",
    )
    add_conversion(parser)
    return parser


def sweep_settings(arguments: argparse.Namespace) -> ConversionSettings:
    """The settings given by the options, checked for a sweep."""
    settings = settings_from(arguments)
    check_sweep(settings)
    return settings


def print_sweep(sweep: Sweep) -> None:
    """Prints the rows of a sweep as a table, and the path of the result."""
    print(f"\n{'recipe':14}{'ratio':>8}{'encoder':>13}{'word error rate':>18}")
    for row in sweep.rows:
        size, rate = row["encoder_parameters"] / 1e6, row["word_error_rate"]
        print(f"{row['recipe']:14}{row['ratio']:8.2f}{size:11.2f} M{rate:16.2f} %")
    print(f"\nwritten to {sweep.folder} (sweep.csv, pareto.png)")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper sweep") -> int:
    """Runs `lite-whisper sweep`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    settings = checked(parser, lambda: sweep_settings(arguments))

    def run() -> None:
        result = sweep(settings, arguments.ratios)
        if is_main_process():
            print_sweep(result)

    return exit_codes.run(parser, run)
