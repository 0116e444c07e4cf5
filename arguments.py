"""The arguments of `convert.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .evaluation.word_error_rate import NORMALIZERS

EXAMPLES = Path(__file__).parent / "examples"
NOISE = (0.0, 40.0)  # dB; see "How it decides what to cut" in the README


def parse_arguments(argv: Sequence[str] | None = None, program: str = "convert.py") -> argparse.Namespace:
    """The arguments of `convert.py`, with the bundled miniature filled in where no model is named."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress the encoder of a Whisper by low-rank factorisation. "
        "Without arguments: the bundled miniature Whisper, calibrated and evaluated on its bundled audio.",
    )
    parser.add_argument("--model", help="Hub id or folder of a Whisper, for example openai/whisper-small")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        help="calibration audio: files, folders, or Hub datasets as org/name[:config[:split]]; may be repeated",
    )
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
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    parser.add_argument(
        "--recipe",
        choices=("loss-aware", "liteasr"),
        help="loss-aware (default): what the recognition loss feels least is cut, to a size of one's choice; "
        "liteasr: the published recipe, variance by thresholds",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--encoder-params", type=_parameters, metavar="313M", help="parameters the encoder may have")
    size.add_argument("--ratio", type=_ratio, help="share of the encoder's parameters to keep")
    size.add_argument(
        "--preset",
        choices=("acc", "plain", "fast"),
        help="the sizes of the published checkpoints, or the same shares of other models (default plain)",
    )
    size.add_argument(
        "--target-speedup",
        type=_speedup,
        metavar="1.5",
        help="how many times as fast the encoder becomes, in the inference mode, as that of the base model; needs "
        "--profile and means --cost time",
    )
    size.add_argument(
        "--thresholds",
        type=_thresholds,
        metavar="ATTENTION:MLP",
        help="with liteasr: share of the variance to keep in attention and in the MLP (default 0.99:0.999)",
    )
    size.add_argument(
        "--sweep",
        type=_ratios,
        metavar="0.3,0.4,...",
        help="instead of a model: the error rate of both recipes at these shares of the encoder's parameters, from one "
        "calibration, as sweep.csv and pareto.png in --output; needs --evaluate",
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
        default=100,
        help="windows of calibration audio, 30 s each for the published Whispers (default 100)",
    )
    parser.add_argument(
        "--noise",
        type=noise_range,
        metavar="LOW:HIGH",
        help="add white noise to each calibration window, of a signal-to-noise ratio drawn between these (dB), or none "
        "(default 0:40; with liteasr none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which samples are taken from the dataset (default 0)")
    parser.add_argument("--batch-size", type=positive, default=4, help="windows that run at once (default 4)")
    parser.add_argument(
        "--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what the model computes in meanwhile (default float32); it is saved in the base model's own",
    )
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
        type=float,
        metavar="MINUTES",
        help="then train the factors for so long to agree with the base model; see also lite-whisper recover",
    )
    parser.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="upload the result there; see also lite-whisper publish"
    )
    add_hub_arguments(parser)
    arguments = parser.parse_args(argv)
    sources = [name for name in ("model", "merge", "upgrade") if getattr(arguments, name)]
    if len(sources) > 1:
        parser.error(f"--{sources[0]} and --{sources[1]} exclude each other")
    if arguments.push_to_hub and (arguments.merge or arguments.sweep):
        parser.error("--push-to-hub publishes a compressed model, not what --merge or --sweep write")
    if not arguments.push_to_hub and (
        arguments.private or arguments.revision or arguments.create_pr or arguments.dry_run
    ):
        parser.error("--private, --revision, --create-pr and --dry-run go with --push-to-hub")
    if arguments.recover and (not arguments.model or arguments.sweep or arguments.dataset is None):
        parser.error("--recover trains the result of a conversion on --dataset; name both and no --sweep")
    if arguments.base_model and not arguments.upgrade:
        parser.error("--base-model goes with --upgrade; the model to compress is --model")
    if not sources:
        if not EXAMPLES.exists():
            parser.error("the bundled miniature only comes with a clone of the repository; give --model and --dataset")
        arguments.model = str(EXAMPLES / "whisper-digits")
        arguments.dataset = arguments.dataset or [str(EXAMPLES / "digits" / "calibration")]
        arguments.evaluate = arguments.evaluate or [str(EXAMPLES / "digits" / "test")]
        arguments.output = arguments.output or Path("build/lite-whisper-digits")
    arguments.cost = arguments.cost or ("time" if arguments.target_speedup else "parameters")
    if arguments.target_speedup and arguments.cost != "time":
        parser.error("--target-speedup spends time; leave --cost parameters out")
    if (arguments.cost == "time") != (arguments.profile is not None):
        parser.error("--cost time and --target-speedup go with --profile, a file that lite-whisper profile writes")
    if arguments.cost == "time" and (arguments.recipe == "liteasr" or arguments.thresholds or arguments.sweep):
        parser.error("--cost time belongs to the loss-aware recipe; leave --recipe, --thresholds and --sweep out")
    arguments.recipe = arguments.recipe or ("liteasr" if arguments.thresholds else "loss-aware")
    if arguments.noise is None:
        arguments.noise = () if arguments.recipe == "liteasr" else NOISE
    if arguments.sweep and not (arguments.model and arguments.evaluate):
        parser.error("--sweep compresses --model to several sizes and measures them on --evaluate; name both")
    if arguments.sweep and arguments.recipe == "liteasr":
        parser.error("--sweep compares both recipes at equal size; leave --recipe and --thresholds out")
    if arguments.recipe == "liteasr":
        if arguments.encoder_params or arguments.ratio or arguments.preset:
            parser.error("--recipe liteasr takes no size; choose --thresholds, or leave --recipe out")
        arguments.thresholds = arguments.thresholds or (0.99, 0.999)
    elif arguments.thresholds:
        parser.error("--thresholds belong to --recipe liteasr; choose --encoder-params, --ratio or --preset")
    kept = arguments.recipe == "liteasr" and arguments.moments and arguments.moments.exists()
    if arguments.model and arguments.dataset is None and not kept:
        parser.error("--dataset is needed: files, folders or Hub datasets with audio like that of the use to come")
    if arguments.output is None:
        parser.error("--output is needed: the folder to write")
    return arguments


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of everything that publishes."""
    parser.add_argument("--private", action="store_true", help="a repository that is created is seen by its owner only")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, created if needed (default main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="upload nothing, list the files that would go up")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _thresholds(text: str) -> tuple[float, float]:
    try:
        attention, mlp = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.99:0.999") from None
    if not (0 < attention < 1 and 0 < mlp < 1):
        raise argparse.ArgumentTypeError(f"both shares of {text} must lie between 0 and 1, for example 0.99:0.999")
    return attention, mlp


def _parameters(text: str) -> int:
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    try:
        count = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
    except ValueError:
        count = 0
    if not 0 < count < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters such as 313M")
    return int(count)


def _number(text: str, largest: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= largest:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _ratio(text: str) -> float:
    return _number(text, 1, "a share between 0 and 1, such as 0.5")


def _speedup(text: str) -> float:
    return _number(text, sys.float_info.max, "a speed-up such as 1.5")


def _ratios(text: str) -> list[float]:
    return sorted({_ratio(part) for part in text.split(",")})


def noise_range(text: str) -> tuple[float, float] | tuple[()]:
    """Two signal-to-noise ratios in dB from text such as "0:40", nothing from "none"."""
    if text == "none":
        return ()
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not -60 <= low <= high <= 120:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of dB such as 0:40, nor none")
    return low, high


def device_name(text: str) -> str:
    """The name of a device that can be used."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used ({reason}); use cpu, or cuda with a GPU") from None
    return text
