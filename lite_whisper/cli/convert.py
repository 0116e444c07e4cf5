"""The command `lite-whisper convert`, which `convert.py` runs too, and the options shared by every conversion."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..common.processes import is_main_process
from ..conversion import Conversion, ConversionSettings, convert
from ..conversion.settings import PRESETS, THRESHOLDS
from ..evaluation.word_error_rate import NORMALIZERS
from . import exit_codes
from .options import (
    add_base_model,
    add_batch_size,
    add_device,
    add_dtype,
    add_hub,
    add_overwrite,
    checked,
    given,
    noise_range,
    parameters,
    positive,
    positive_number,
    ratio,
    thresholds,
)
from .publish import check_login, publish_folder

EXAMPLES = Path(__file__).parents[2] / "examples"


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper convert`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress the encoder of a Whisper by low-rank factorisation. "
        "Without arguments: compress the bundled miniature Whisper, calibrated and evaluated on its bundled audio.",
    )
    add_base_model(parser)
    parser.add_argument("--output", type=Path, help="model folder to write")
    add_overwrite(parser)
    add_size(parser)
    add_conversion(parser)
    hub = parser.add_argument_group("publishing")
    hub.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="upload the result to this repository; see also lite-whisper publish"
    )
    add_hub(hub)
    return parser


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options that set the size or speed of the encoder; `ConversionSettings` accepts one of them."""
    size = parser.add_argument_group("size of the encoder (choose one)")
    size.add_argument("--encoder-params", type=parameters, metavar="313M", help="maximum number of encoder parameters")
    size.add_argument("--ratio", type=ratio, help="fraction of the encoder's parameters to keep")
    size.add_argument(
        "--preset",
        choices=PRESETS,
        help="size of the published checkpoint of that name, or the same fraction of another model (default: plain)",
    )
    size.add_argument(
        "--target-speedup",
        type=positive_number,
        metavar="1.5",
        help="encoder speed-up over the base model in optimised inference; requires --profile, implies --cost time",
    )
    size.add_argument(
        "--thresholds",
        type=thresholds,
        metavar="ATTENTION:MLP",
        help="with --recipe liteasr: fraction of the variance to keep in attention and in the MLP "
        f"(default: {':'.join(map(str, THRESHOLDS))})",
    )


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """Adds the options of calibration, recipe, computation and evaluation."""
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        help="calibration audio: files, folders, or Hub datasets as org/name[:config[:split]]; may be repeated",
    )
    calibration.add_argument(
        "--num-windows",
        type=positive,
        default=ConversionSettings.num_windows,
        help="windows of calibration audio, 30 s each for the published Whispers (default: %(default)s)",
    )
    calibration.add_argument(
        "--noise",
        type=noise_range,
        metavar="LOW:HIGH",
        help="add white noise to each calibration window at a signal-to-noise ratio drawn from this range in dB, or "
        "none (default: 0:40; with --recipe liteasr none)",
    )
    calibration.add_argument(
        "--seed",
        type=int,
        default=ConversionSettings.seed,
        help="seed for sampling the calibration audio (default: %(default)s)",
    )
    calibration.add_argument(
        "--calibration-file",
        type=Path,
        help="save the calibration statistics to this file, or reuse them if it exists",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        choices=("loss-aware", "liteasr"),
        help="loss-aware: minimise the increase in recognition loss at the chosen size; liteasr: the published recipe, "
        "which keeps a fraction of the variance (default: loss-aware)",
    )
    recipe.add_argument(
        "--cost",
        choices=("parameters", "time"),
        help="budget to optimise under: parameters, or time measured by --profile (default: parameters)",
    )
    recipe.add_argument(
        "--profile", type=Path, help="with --cost time: profile written by lite-whisper profile on the target machine"
    )
    recipe.add_argument(
        "--rank-multiple",
        type=positive,
        default=ConversionSettings.rank_multiple,
        help="round ranks to multiples of this number (default: %(default)s)",
    )
    recipe.add_argument(
        "--recover",
        type=positive_number,
        metavar="MINUTES",
        help="then recover accuracy by distillation from the base model; see also lite-whisper recover",
    )
    recipe.add_argument(
        "--constant-padding",
        action=argparse.BooleanOptionalAction,
        help="then precompute padding, so that short clips run faster; see also lite-whisper precompute-padding "
        "(default: only with --ratio 1)",
    )
    computation = parser.add_argument_group("computation")
    add_device(computation)
    add_dtype(computation, ConversionSettings.dtype)
    add_batch_size(computation, ConversionSettings.batch_size)
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument(
        "--evaluate",
        nargs="+",
        metavar="DATASET",
        help="transcribe these datasets before and after; word error rate and encoder time go into the report",
    )
    evaluation.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        default=ConversionSettings.normalizer,
        help="text normalizer applied before scoring (default: %(default)s)",
    )


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of `lite-whisper convert`, checked; `settings` holds the `ConversionSettings`."""
    arguments = parser.parse_args(argv)
    if arguments.base_model is None:
        use_miniature(parser, arguments)
    if arguments.output is None:
        parser.error("--output is required: the model folder to write")
    hub_option_given = arguments.private or arguments.revision or arguments.create_pr or arguments.dry_run
    if hub_option_given and not arguments.push_to_hub:
        parser.error("--private, --revision, --create-pr and --dry-run require --push-to-hub")
    arguments.settings = checked(parser, lambda: settings_from(arguments))
    return arguments


def use_miniature(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Without a base model, converts the bundled miniature with its bundled audio."""
    if not EXAMPLES.exists():
        parser.error("the bundled miniature requires a clone of the repository; give --base-model and --dataset")
    if arguments.recover:
        parser.error("--recover requires --base-model and --dataset")
    arguments.base_model = str(EXAMPLES / "whisper-digits")
    arguments.dataset = arguments.dataset or [str(EXAMPLES / "digits" / "calibration")]
    arguments.evaluate = arguments.evaluate or [str(EXAMPLES / "digits" / "test")]
    arguments.output = arguments.output or Path("build/lite-whisper-digits")


def settings_from(arguments: argparse.Namespace) -> ConversionSettings:
    """The settings given by the options of `add_conversion` and, if present, of `add_size`."""
    named = {field.name for field in fields(ConversionSettings)} & vars(arguments).keys()
    options: dict[str, Any] = given(arguments, *sorted(named))
    return ConversionSettings(**options)


def print_conversion(conversion: Conversion) -> None:
    """Prints a table of the figures before and after, and the path of the result."""
    if speedup := conversion.report["recipe"].get("predicted_speedup"):
        print(f"encoder speed-up in optimised inference, predicted from the profile: {speedup:.2f}")
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
    print(f"\nwritten to {conversion.folder} (report: compression.json, ranks: ranks.png)")


def run(arguments: argparse.Namespace) -> None:
    """Converts, prints and publishes; of several processes only the main one prints and publishes."""
    if arguments.push_to_hub:
        check_login(arguments, arguments.push_to_hub)
    conversion = convert(arguments.settings)
    if is_main_process():
        print_conversion(conversion)
        if arguments.push_to_hub:
            publish_folder(arguments, arguments.output, arguments.push_to_hub)


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper convert") -> int:
    """Runs `lite-whisper convert`; returns the exit code."""
    parser = build_parser(program)
    arguments = parse_arguments(parser, argv)
    return exit_codes.run(parser, lambda: run(arguments))
