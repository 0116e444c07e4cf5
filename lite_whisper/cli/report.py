"""The command `lite-whisper report`, and the report printed by `lite-whisper evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.files import check_output_file
from ..evaluation.report import Evaluation, differences, score, write_json, write_summary
from ..evaluation.word_error_rate import SCORINGS
from . import exit_codes


def report(manifests: Sequence[Path], json_file: Path | None, scoring: str) -> None:
    """Prints the report of manifests and writes tables and plots to the folder of the first manifest."""
    if json_file:
        check_output_file(json_file, "json")
    evaluations = score(manifests, scoring)
    print_report(evaluations)
    folder = manifests[0].parent
    write_summary(evaluations, folder)
    if json_file:
        write_json(evaluations, json_file)
    print(f"\nwritten to {folder} (summary.csv, error_by_set.png, error_by_size.png, *.model-index.yml)")


def print_report(evaluations: Sequence[Evaluation]) -> None:
    """Prints a table of error rates and speed, and the differences between models."""
    model_column = max(len(e.result.model) for e in evaluations) + 2
    dataset_column = max(len(e.result.dataset) for e in evaluations) + 2
    print(
        f"\n{'model':{model_column}}{'dataset':{dataset_column}}{'WER %':>8}{'CER %':>8}{'sub':>7}{'del':>7}"
        f"{'ins':>7}{'RTFx':>9}"
    )
    for evaluation in evaluations:
        r = evaluation.result
        print(
            f"{r.model:{model_column}}{r.dataset:{dataset_column}}{r.wer:8.2f}{r.cer:8.2f}{r.substitutions:7}{r.deletions:7}"
            f"{r.insertions:7}{r.rtfx:9.1f}"
        )
    print(f"scoring: {SCORINGS[evaluations[0].result.scoring]}")
    for evaluation in evaluations:
        if fallbacks := evaluation.result.fallbacks:
            r = evaluation.result
            print(f"{r.model} on {r.dataset}: {fallbacks} clips decoded again with all positions (fallback)")
    for result, base, (points, low, high) in differences(evaluations):
        verdict = "no clear difference" if low <= 0 <= high else "worse" if points > 0 else "better"
        print(
            f"{result.model} compared with {base.model} on {result.dataset}: {points:+.2f} points, "
            f"95 % interval {low:+.2f} to {high:+.2f} ({verdict})"
        )


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Adds `--scoring`."""
    descriptions = "; ".join(f"{name}: {description}" for name, description in SCORINGS.items())
    parser.add_argument(
        "--scoring",
        choices=SCORINGS,
        default="plain",
        help=f"how word errors are counted; {descriptions} (default: %(default)s)",
    )


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper report`."""
    parser = argparse.ArgumentParser(
        prog=program, description="Recompute the report of an evaluation from its manifests, without decoding again."
    )
    parser.add_argument("manifests", nargs="+", type=Path, help="manifests written by lite-whisper evaluate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    add_scoring(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper report") -> int:
    """Runs `lite-whisper report`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: report(arguments.manifests, arguments.json, arguments.scoring))
