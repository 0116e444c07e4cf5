"""The command `lite-whisper recover`."""

import argparse
from collections.abc import Sequence

from ..common.processes import is_main_process
from ..conversion.recover import RecoverySettings, recover_model
from ..training.recovery import Recovery
from . import exit_codes
from .options import (
    add_base_model,
    add_batch_size,
    add_device,
    add_dtype,
    add_model_folder,
    add_output,
    add_training_audio,
    positive,
    positive_number,
)


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper recover`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Recover accuracy by distillation: train the low-rank factors of a compressed model to reproduce "
        "the outputs of its base model, on audio without transcripts.",
    )
    add_model_folder(parser, "compressed model")
    add_base_model(parser, default="the one named in the compressed model")
    add_output(parser)
    add_training_audio(parser, RecoverySettings.num_windows, Recovery.noise, Recovery.seed)
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=positive_number, default=Recovery.minutes, help="training time (default: %(default)g)"
    )
    length.add_argument("--steps", type=positive, help="number of training steps, instead of --minutes")
    add_batch_size(parser, Recovery.batch_size, "windows")
    parser.add_argument(
        "--learning-rate", type=positive_number, help="peak learning rate (default: derived from the initial loss)"
    )
    add_device(parser)
    add_dtype(parser, RecoverySettings.dtype, ("float32", "bfloat16"))
    return parser


def settings_from(arguments: argparse.Namespace) -> RecoverySettings:
    """The settings given by the options."""
    training = Recovery(
        steps=arguments.steps,
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        noise=arguments.noise,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    names = ("model", "output", "dataset", "base_model", "overwrite", "num_windows", "device", "dtype")
    return RecoverySettings(training=training, **{name: getattr(arguments, name) for name in names})


def run(settings: RecoverySettings) -> None:
    """Recovers accuracy, and prints the loss before and after."""
    recovery = recover_model(settings)
    if is_main_process():
        before, after = recovery["loss_before"], recovery["loss_after"]
        print(f"held-out loss: {before:.4f} before, {after:.4f} after")
        print(f"written to {settings.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper recover") -> int:
    """Runs `lite-whisper recover`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(settings_from(arguments)))
