"""The command `lite-whisper evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import InputError
from ..common.files import check_output_file
from ..common.processes import is_main_process
from ..evaluation.comparison import EvaluationSettings, evaluate_models
from ..evaluation.decoding import Decoding
from ..evaluation.leaderboard import LANGUAGES, SETS
from ..evaluation.robustness import Row, robustness
from ..evaluation.word_error_rate import NORMALIZERS, check_scoring
from . import exit_codes
from .options import add_computing, add_decoding, positive
from .score import add_scoring, report


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper evaluate`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe datasets with any number of models and report error rates and speed. Every model and "
        "set has a manifest in --output, to which a run that was interrupted adds what is missing.",
    )
    parser.add_argument("models", nargs="+", help="Hub ids or folders of Whispers, compressed or not")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        required=True,
        help="audio with transcripts: folders with metadata.csv, Hub datasets as org/name[:config[:split]], "
        f"or sets of the Open ASR leaderboard: {', '.join(SETS)}",
    )
    parser.add_argument("--text-column", help="of the transcripts, where it has none of the usual names")
    add_decoding(parser)
    parser.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        help="of the texts (default english, or basic where --language names another)",
    )
    add_scoring(parser)
    parser.add_argument("--num-samples", type=positive, help="clips of each set (default all)")
    add_computing(parser, batch_size=8)
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder of the manifests (default results)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also compare timestamps, words in silence and noise, language and translation with the first model",
    )
    return parser


def settings_from(arguments: argparse.Namespace) -> EvaluationSettings:
    """The settings that the arguments make up, with the names of sets filled in."""
    for language in LANGUAGES:
        if f"leaderboard-{language}" in arguments.dataset and arguments.language != language:
            raise InputError(f"leaderboard-{language} is of one language: {language}", setting="language")
    english = arguments.language in (None, "en")
    return EvaluationSettings(
        models=arguments.models,
        dataset=[source for name in arguments.dataset for source in SETS.get(name, [name])],
        output=arguments.output,
        text_column=arguments.text_column,
        decoding=Decoding(arguments.num_beams, arguments.language, arguments.task),
        normalizer=arguments.normalizer or ("english" if english else "basic"),
        num_samples=arguments.num_samples,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluates the models, then reports."""
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
    """Prints a column for each model."""
    width = max(map(len, rows)) + 2
    first = next(iter(rows))
    print(f"\nrobustness, against {first}\n{'':22}" + "".join(f"{name:>{width}}" for name in rows))
    for key in rows[first]:
        print(f"{key:22}" + "".join(f"{_cell(row[key]):>{width}}" for row in rows.values()))
    print("shifts in seconds; words in all windows of a kind together; other_language and translation_wer in per cent")


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper evaluate") -> int:
    """Runs `lite-whisper evaluate`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(arguments))
