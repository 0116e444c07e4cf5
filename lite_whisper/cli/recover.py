"""The command `lite-whisper recover`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..common.processes import is_main_process
from ..conversion.recover import RecoverySettings, recover_model
from ..training.recovery import Recovery
from . import exit_codes
from .options import add_device, noise_range, positive


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper recover`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train the low-rank factors of a compressed model to agree with the model before compression, on "
        "audio without transcripts.",
    )
    parser.add_argument("model", help="Hub id or folder of the compressed model")
    parser.add_argument("--teacher", help="the Whisper that it was made from (default: the one it names)")
    parser.add_argument("--dataset", nargs="+", action="extend", required=True, help="audio, as in convert")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=Recovery.minutes, help="that it may take (default 10)")
    length.add_argument("--steps", type=positive, help="instead of a time")
    parser.add_argument("--num-samples", type=positive, default=100, help="windows of audio (default 100)")
    parser.add_argument(
        "--noise", type=noise_range, default=Recovery.noise, metavar="LOW:HIGH", help="as in convert (default 0:40)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples, the noise and their order (default 0)")
    parser.add_argument("--batch-size", type=positive, default=Recovery.batch_size, help="windows per step (default 2)")
    parser.add_argument(
        "--learning-rate", type=float, help="the highest (default: it follows from how far the model is off)"
    )
    add_device(parser)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe (autocast)")
    return parser


def settings_from(arguments: argparse.Namespace) -> RecoverySettings:
    """The settings that the arguments make up."""
    training = Recovery(
        steps=arguments.steps,
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        noise=arguments.noise,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    names = ("model", "output", "dataset", "teacher", "overwrite", "num_samples", "device", "bf16")
    return RecoverySettings(training=training, **{name: getattr(arguments, name) for name in names})


def run(settings: RecoverySettings) -> None:
    """Recovers, and prints what came of it."""
    recovery = recover_model(settings)
    if is_main_process():
        before, after = recovery["loss_before"], recovery["loss_after"]
        print(f"loss on the audio held out: {before:.4f} before, {after:.4f} after")
        print(f"written to {settings.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper recover") -> int:
    """Runs `lite-whisper recover`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(settings_from(arguments)))
