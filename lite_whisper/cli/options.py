"""Options shared by several commands, and the parsers of their values."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ..common.errors import InputError
from .exit_codes import explained

Settings = TypeVar("Settings")
Parser = argparse.ArgumentParser | argparse._ArgumentGroup
DTYPES = ("float32", "float16", "bfloat16")


def add_base_model(parser: Parser, required: bool = False, default: str | None = None) -> None:
    """Adds `--base-model`; `default` says in words which one is used without it."""
    parser.add_argument(
        "--base-model",
        required=required,
        help="Hub id or folder of the original Whisper, e.g. openai/whisper-small"
        + (f" (default: {default})" if default else ""),
    )


def add_model_folder(parser: Parser, kind: str = "Whisper, compressed or not") -> None:
    """Adds the positional argument `model`."""
    parser.add_argument("model", help=f"Hub id or folder of a {kind}")


def add_output(parser: Parser) -> None:
    """Adds `--output` and `--overwrite` of commands that write a model folder."""
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    add_overwrite(parser)


def add_overwrite(parser: Parser) -> None:
    """Adds `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder at --output")


def add_device(parser: Parser) -> None:
    """Adds `--device`."""
    parser.add_argument(
        "--device", type=device_name, help="cpu, cuda, cuda:1 and so on (default: cuda if there is a GPU, else cpu)"
    )


def add_dtype(parser: Parser, default: str, choices: Sequence[str] = DTYPES) -> None:
    """Adds `--dtype`."""
    parser.add_argument(
        "--dtype", choices=choices, default=default, help="data type to compute in (default: %(default)s)"
    )


def add_batch_size(parser: Parser, default: int, what: str = "windows of audio") -> None:
    """Adds `--batch-size`."""
    parser.add_argument("--batch-size", type=positive, default=default, help=f"{what} per batch (default: %(default)s)")


def add_training_audio(parser: Parser, num_windows: int, noise: Sequence[float], seed: int) -> None:
    """Adds `--dataset`, `--num-windows`, `--noise` and `--seed` of commands that learn from audio."""
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        required=True,
        help="audio: files, folders, or Hub datasets as org/name[:config[:split]]; may be repeated",
    )
    parser.add_argument(
        "--num-windows",
        type=positive,
        default=num_windows,
        help="windows of audio, 30 s each for the published Whispers (default: %(default)s)",
    )
    parser.add_argument(
        "--noise",
        type=noise_range,
        default=noise,
        metavar="LOW:HIGH",
        help="add white noise to each window at a signal-to-noise ratio drawn from this range in dB, or none "
        f"(default: {':'.join(f'{level:g}' for level in noise) or 'none'})",
    )
    parser.add_argument("--seed", type=int, default=seed, help="random seed (default: %(default)s)")


def add_decoding(parser: Parser) -> None:
    """Adds the options of decoding."""
    parser.add_argument("--language", type=language, help="language spoken in the audio, e.g. de (default: detect)")
    parser.add_argument(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="transcribe in the language spoken, or translate to English (default: %(default)s)",
    )
    parser.add_argument(
        "--num-beams", type=positive, default=1, help="beam size; 1 is greedy decoding (default: %(default)s)"
    )


def add_hub(parser: Parser) -> None:
    """Adds the options shared by all commands that publish."""
    parser.add_argument("--private", action="store_true", help="if the repository is created, make it private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, created if needed (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="list the files that would be uploaded; upload nothing")


def checked(parser: argparse.ArgumentParser, build: Callable[[], Settings]) -> Settings:
    """Builds settings from options; conflicting ones end the program like any other invalid option."""
    try:
        return build()
    except InputError as error:
        parser.error(explained(parser, error))


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options that were given on the command line."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def positive_number(text: str) -> float:
    """A positive number, such as a speed-up or a duration."""
    return _number(text, math.inf, "a positive number")


def ratio(text: str) -> float:
    """A fraction in (0, 1]."""
    return _number(text, 1, "a fraction between 0 and 1, such as 0.5")


def ratios(text: str) -> list[float]:
    """Fractions separated by commas, sorted and without duplicates."""
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
    """A number of parameters, parsed from text such as "313M"."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    try:
        count = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
    except ValueError:
        count = 0
    if not 0 < count < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters such as 313M")
    return int(count)


def thresholds(text: str) -> tuple[float, float]:
    """Two fractions of the variance, parsed from text such as "0.99:0.999"."""
    try:
        attention, mlp = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.99:0.999") from None
    if not (0 < attention < 1 and 0 < mlp < 1):
        raise argparse.ArgumentTypeError(f"both fractions in {text} must lie between 0 and 1, for example 0.99:0.999")
    return attention, mlp


def noise_range(text: str) -> tuple[float, float] | tuple[()]:
    """Two signal-to-noise ratios in dB, parsed from text such as "0:40"; empty for "none"."""
    if text == "none":
        return ()
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not -60 <= low <= high <= 120:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range in dB such as 0:40, nor none")
    return low, high


def device_name(text: str) -> str:
    """The name of an available device."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} is not available ({reason}); use cpu, or cuda with a GPU") from None
    return text


def language(text: str) -> str:
    """The code of a language, from its code or its English name."""
    code = TO_LANGUAGE_CODE.get(text.lower(), text.lower())
    if code not in LANGUAGES:
        raise argparse.ArgumentTypeError(f"{text} is not a language supported by Whisper, such as de or german")
    return code
