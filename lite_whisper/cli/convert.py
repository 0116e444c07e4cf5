"""The options of `convert.py`, and its report."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..conversion import Conversion, ConversionSettings
from ..conversion.settings import PRESETS
from ..conversion.sweep import Sweep
from ..evaluation.word_error_rate import NORMALIZERS
from .options import (
    add_computing,
    add_hub,
    checked,
    given,
    noise_range,
    parameters,
    positive,
    positive_number,
    ratio,
    ratios,
    thresholds,
)

EXAMPLES = Path(__file__).parents[1] / "examples"


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    The arguments of `convert.py`, checked, with the bundled miniature filled in where no model is named.

    What they say of a conversion is in `settings`, of a sweep too.
    """
    arguments = parser.parse_args(argv)
    fill_in(parser, arguments)
    check(parser, arguments)
    if arguments.model:
        arguments.settings = checked(parser, lambda: settings_from(arguments, arguments.model, arguments.output))
    return arguments


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `convert.py`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress the encoder of a Whisper by low-rank factorisation. "
        "Without arguments: the bundled miniature Whisper, calibrated and evaluated on its bundled audio.",
    )
    parser.add_argument("--model", help="Hub id or folder of a Whisper, for example openai/whisper-small")
    parser.add_argument(
        "--merge",
        metavar="LITE_WHISPER",
        help="instead of compressing: multiply the pairs of a compressed model out and write a stock Whisper",
    )
    parser.add_argument(
        "--upgrade",
        metavar="LITE_WHISPER",
        help="instead of compressing: rewrite a checkpoint of efficient-speech/ as a complete model folder",
    )
    parser.add_argument("--base-model", help="with --upgrade: the Whisper that it was made from, if unknown")
    parser.add_argument("--output", type=Path, help="the folder to write")
    add_size(parser)
    add_conversion(parser)
    parser.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="upload the result there; see also lite-whisper publish"
    )
    add_hub(parser)
    return parser


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how small or fast the encoder becomes, of which one is given."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--encoder-params", type=parameters, metavar="313M", help="parameters the encoder may have")
    size.add_argument("--ratio", type=ratio, help="share of the encoder's parameters to keep")
    size.add_argument(
        "--preset",
        choices=PRESETS,
        help="the sizes of the published checkpoints, or the same shares of other models (default plain)",
    )
    size.add_argument(
        "--target-speedup",
        type=positive_number,
        metavar="1.5",
        help="how many times as fast the encoder becomes, in the inference mode, as that of the base model; needs "
        "--profile and means --cost time",
    )
    size.add_argument(
        "--thresholds",
        type=thresholds,
        metavar="ATTENTION:MLP",
        help="with liteasr: share of the variance to keep in attention and in the MLP (default 0.99:0.999)",
    )
    size.add_argument(
        "--sweep",
        type=ratios,
        metavar="0.3,0.4,...",
        help="instead of a model: the error rate of both recipes at these shares of the encoder's parameters, from one "
        "calibration, as sweep.csv and pareto.png in --output; needs --evaluate",
    )


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """Adds the options of recipe, calibration, evaluation and recovery."""
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        help="calibration audio: files, folders, or Hub datasets as org/name[:config[:split]]; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    parser.add_argument(
        "--recipe",
        choices=("loss-aware", "liteasr"),
        help="loss-aware (default): what the recognition loss feels least is cut, to a size of one's choice; "
        "liteasr: the published recipe, variance by thresholds",
    )
    parser.add_argument(
        "--cost",
        choices=("parameters", "time"),
        help="what is spent where it buys most: parameters (default), or time, as much as the parameters would take",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        help="with --cost time: what lite-whisper profile wrote on the machine of the use to come",
    )
    parser.add_argument("--rank-multiple", type=positive, default=16, help="ranks are multiples of this (default 16)")
    parser.add_argument(
        "--num-samples",
        type=positive,
        default=64,
        help="windows of calibration audio, 30 s each for the published Whispers (default 64)",
    )
    parser.add_argument(
        "--noise",
        type=noise_range,
        metavar="LOW:HIGH",
        help="add white noise to each calibration window, of a signal-to-noise ratio drawn between these (dB), or none "
        "(default 0:40; with liteasr none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which samples are taken from the dataset (default 0)")
    add_computing(parser, batch_size=4)
    parser.add_argument(
        "--moments",
        type=Path,
        help="keep the calibration in this file; where it exists already, it is not repeated",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="DATASET",
        help="transcribe these before and after; word error rate and encoder time go into the report",
    )
    parser.add_argument("--normalizer", choices=NORMALIZERS, default="basic", help="of the texts (default basic)")
    parser.add_argument(
        "--recover",
        type=positive_number,
        metavar="MINUTES",
        help="then train the factors for so long to agree with the base model; see also lite-whisper recover",
    )
    parser.add_argument(
        "--constant-padding",
        action=argparse.BooleanOptionalAction,
        help="then let the result learn what it computes at the silence behind a clip, so that short clips take less; "
        "see also lite-whisper pad (default with --ratio 1)",
    )


def fill_in(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Without a model, that is the bundled miniature with its audio."""
    if arguments.model or arguments.merge or arguments.upgrade:
        return
    if not EXAMPLES.exists():
        parser.error("the bundled miniature only comes with a clone of the repository; give --model and --dataset")
    if arguments.recover:
        parser.error("--recover trains the result of a conversion on --dataset; name --model and --dataset")
    arguments.model = str(EXAMPLES / "whisper-digits")
    arguments.dataset = arguments.dataset or [str(EXAMPLES / "digits" / "calibration")]
    arguments.evaluate = arguments.evaluate or [str(EXAMPLES / "digits" / "test")]
    arguments.output = arguments.output or Path("build/lite-whisper-digits")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where options do not go together."""
    sources = [name for name in ("model", "merge", "upgrade") if getattr(arguments, name)]
    if len(sources) > 1:
        parser.error(f"--{sources[0]} and --{sources[1]} exclude each other")
    if arguments.output is None:
        parser.error("--output is needed: the folder to write")
    if arguments.push_to_hub and (arguments.merge or arguments.sweep):
        parser.error("--push-to-hub publishes a compressed model, not what --merge or --sweep write")
    of_hub = arguments.private or arguments.revision or arguments.create_pr or arguments.dry_run
    if of_hub and not arguments.push_to_hub:
        parser.error("--private, --revision, --create-pr and --dry-run go with --push-to-hub")
    if arguments.sweep and arguments.recover:
        parser.error("--recover trains one result, and --sweep measures several; leave one out")
    if arguments.sweep and arguments.constant_padding:
        parser.error("--constant-padding is learnt by one result, and --sweep measures several; leave one out")
    if arguments.sweep and not arguments.evaluate:
        parser.error("--sweep compresses --model to several sizes and measures them on --evaluate; name both")
    if arguments.sweep and (arguments.recipe == "liteasr" or arguments.cost == "time"):
        parser.error("--sweep compares both recipes at equal size; leave --recipe and --cost out")
    if arguments.base_model and not arguments.upgrade:
        parser.error("--base-model goes with --upgrade; the model to compress is --model")


def settings_from(arguments: argparse.Namespace, model: str, output: Path) -> ConversionSettings:
    """The settings that the options of `add_conversion` and, where there are any, of `add_size` make up."""
    named = {field.name for field in fields(ConversionSettings)} & vars(arguments).keys()
    named -= {"model", "output"}
    options: dict[str, Any] = given(arguments, *sorted(named))
    return ConversionSettings(model=model, output=output, **options)


def print_conversion(conversion: Conversion) -> None:
    """Prints the figures of both models as a table, and where the result is."""
    if speedup := conversion.report["recipe"].get("predicted_speedup"):
        print(f"speed-up of the encoder in the inference mode, by the profile: {speedup:.2f}")
    rows = {
        "encoder parameters": ("encoder_parameters", 1e6, "M"),
        "total parameters": ("total_parameters", 1e6, "M"),
        "weights on disk": ("weight_bytes", 1e6, "MB"),
        "word error rate": ("word_error_rate", 1, "%"),
        "encoder, per window": ("encoder_milliseconds", 1, "ms"),
    }
    print(f"\n{'':20}{'before':>14}{'after':>14}{'after/before':>14}")
    before, after = conversion.before, conversion.after
    for label, (key, unit, name) in rows.items():
        if key in before:
            change = f"{after[key] / before[key]:13.1%}" if before[key] else f"{'-':>13}"
            print(f"{label:20}{before[key] / unit:11.2f} {name:<2}{after[key] / unit:11.2f} {name:<2} {change}")
    print(f"\nwritten to {conversion.folder} (what was done: compression.json, the ranks: ranks.png)")


def print_sweep(sweep: Sweep) -> None:
    """Prints the rows of a sweep as a table, and where the result is."""
    print(f"\n{'recipe':14}{'ratio':>8}{'encoder':>13}{'word error rate':>18}")
    for row in sweep.rows:
        size, rate = row["encoder_parameters"] / 1e6, row["word_error_rate"]
        print(f"{row['recipe']:14}{row['ratio']:8.2f}{size:11.2f} M{rate:16.2f} %")
    print(f"\nwritten to {sweep.folder} (sweep.csv, pareto.png)")
