"""The command `lite-whisper evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import InputError
from ..common.files import check_output_file
from ..common.processes import is_main_process
from ..evaluation.comparison import EvaluationSettings, evaluate_models
from ..evaluation.decoding import DecodingOptions
from ..evaluation.leaderboard import LANGUAGES, SETS
from ..evaluation.robustness import Row, robustness
from ..evaluation.word_error_rate import NORMALIZERS, check_scoring
from . import exit_codes
from .options import add_batch_size, add_decoding, add_device, add_dtype, positive
from .report import add_scoring, report


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper evaluate`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe datasets with any number of models and report error rates and speed. Each model and "
        "dataset gets a manifest in --output; run the same command again to resume an interrupted run.",
    )
    parser.add_argument("models", nargs="+", help="Hub ids or folders of Whispers, compressed or not")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        required=True,
        help="audio with transcripts: folders with metadata.csv, Hub datasets as org/name[:config[:split]], "
        f"or test sets of the Open ASR leaderboard: {', '.join(SETS)}",
    )
    parser.add_argument("--text-column", help="column of the transcripts, if it has an unusual name")
    add_decoding(parser)
    parser.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        help="text normalizer applied before scoring (default: english, or basic if --language is another language)",
    )
    add_scoring(parser)
    parser.add_argument("--num-clips", type=positive, help="number of clips from each dataset (default: all)")
    add_device(parser)
    add_dtype(parser, EvaluationSettings.dtype)
    add_batch_size(parser, EvaluationSettings.batch_size, "clips")
    parser.add_argument(
        "--output", type=Path, default=EvaluationSettings.output, help="folder of the manifests (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also compare timestamps, words in silence and noise, language and translation with the first model",
    )
    return parser


def settings_from(arguments: argparse.Namespace) -> EvaluationSettings:
    """The settings given by the options, with the names of leaderboard sets resolved."""
    for language in LANGUAGES:
        if f"leaderboard-{language}" in arguments.dataset and arguments.language != language:
            raise InputError(f"leaderboard-{language} requires --language {language}", setting="language")
    english = arguments.language in (None, "en")
    return EvaluationSettings(
        models=arguments.models,
        dataset=[source for name in arguments.dataset for source in SETS.get(name, [name])],
        output=arguments.output,
        text_column=arguments.text_column,
        decoding=DecodingOptions(arguments.num_beams, arguments.language, arguments.task),
        normalizer=arguments.normalizer or ("english" if english else "basic"),
        num_clips=arguments.num_clips,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluates the models and prints the report."""
    settings = settings_from(arguments)
    check_scoring(arguments.scoring)
    if arguments.json:
        check_output_file(arguments.json, "json")
    manifests = evaluate_models(settings)
    if is_main_process():
        report(manifests, arguments.json, arguments.scoring)
        if arguments.robustness:
            print_robustness(robustness(settings))


def print_robustness(rows: dict[str, Row]) -> None:
    """Prints one column per model."""
    width = max(map(len, rows)) + 2
    first = next(iter(rows))
    print(f"\nrobustness compared with {first}\n{'':22}" + "".join(f"{name:>{width}}" for name in rows))
    for key in rows[first]:
        print(f"{key:22}" + "".join(f"{_cell(row[key]):>{width}}" for row in rows.values()))
    print("shifts in seconds; words: total over all clips of a kind; other_language and translation_wer in per cent")


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper evaluate") -> int:
    """Runs `lite-whisper evaluate`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(arguments))
