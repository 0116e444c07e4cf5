"""Options that several commands have, and the numbers and names that options take."""

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ..common.errors import InputError
from .exit_codes import explained

Settings = TypeVar("Settings")


def add_computing(parser: argparse.ArgumentParser, batch_size: int | None = None, int8: bool = False) -> None:
    """
    Adds `--device` and `--dtype` and, where there is a default for it, `--batch-size`.

    Args:
        parser (`argparse.ArgumentParser`): to add them to.
        batch_size (`int`, *optional*): the default of `--batch-size`.
        int8 (`bool`): whether the dtype may be int8.
    """
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", *(["int8"] if int8 else [])),
        default="float32",
        help="what the model computes in (default float32)",
    )
    if batch_size:
        parser.add_argument(
            "--batch-size",
            type=positive,
            default=batch_size,
            help=f"windows of audio that run at once (default {batch_size})",
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`."""
    parser.add_argument("--device", type=device_name, help="cpu, cuda, cuda:1 (default cuda where there is a GPU)")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how text is generated."""
    parser.add_argument("--language", type=language, help="that is spoken, such as de; by default the model detects it")
    parser.add_argument("--task", choices=("transcribe", "translate"), default="transcribe")
    parser.add_argument("--num-beams", type=positive, default=1, help="default 1, greedy")


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Adds the options of everything that publishes."""
    parser.add_argument("--private", action="store_true", help="a repository that is created is seen by its owner only")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, created if needed (default main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="upload nothing, list the files that would go up")


def checked(parser: argparse.ArgumentParser, build: Callable[[], Settings]) -> Settings:
    """Settings that options make up; where they do not go together, the program ends as for any wrong option."""
    try:
        return build()
    except InputError as error:
        parser.error(explained(parser, error))


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the named options that were given."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def positive_number(text: str) -> float:
    """A number above 0, such as a speed-up or a time."""
    return _number(text, math.inf, "a positive number")


def ratio(text: str) -> float:
    """A fraction of a whole."""
    return _number(text, 1, "a share between 0 and 1, such as 0.5")


def ratios(text: str) -> list[float]:
    """Several of them, separated by commas."""
    return sorted({ratio(part) for part in text.split(",")})


def _number(text: str, largest: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not (0 < number <= largest and number < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def parameters(text: str) -> int:
    """A number of parameters from text such as "313M"."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    try:
        count = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
    except ValueError:
        count = 0
    if not 0 < count < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters such as 313M")
    return int(count)


def thresholds(text: str) -> tuple[float, float]:
    """Two shares of the variance from text such as "0.99:0.999"."""
    try:
        attention, mlp = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.99:0.999") from None
    if not (0 < attention < 1 and 0 < mlp < 1):
        raise argparse.ArgumentTypeError(f"both shares of {text} must lie between 0 and 1, for example 0.99:0.999")
    return attention, mlp


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


def language(text: str) -> str:
    """The code of a language from its code or its English name."""
    code = TO_LANGUAGE_CODE.get(text.lower(), text.lower())
    if code not in LANGUAGES:
        raise argparse.ArgumentTypeError(f"{text} is not a language that Whisper knows, such as de or german")
    return code
