"""Recovery: distillation of the base model into the low-rank factors, on audio without transcripts."""

import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainerState, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.trainer import TRAINER_STATE_NAME

from ..audio import Clip, split_into_windows
from ..common.errors import InputError
from ..common.files import record_origin
from ..lowrank.compression import set_factors
from ..lowrank.spectrum import Factors, balance_factors
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration, LowRankLinear
from .distillation_data import (
    DistillationDataset,
    Recovery,
    count_text_tokens,
    move_to_cpu,
    teacher_seconds,
    write_distillation_data,
)
from .trainer import (
    EVALUATIONS,
    RecoveryTrainer,
    affordable_steps,
    choose_learning_rate,
    last_checkpoint,
    training_arguments,
)

logger = logging.getLogger(__name__)

HELD_OUT_INTERVAL = 10  # every tenth window is held out to select the best checkpoint
TEACHER_TIME_SHARE = 1 / 3  # of the total time; exceeded only if a single pass over the audio takes longer
DURATION_SETTINGS = ("steps", "minutes")
SHARED_SIZES = ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins", "max_source_positions")


def check_pair(student: LiteWhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> None:
    """
    Checks that the student can be trained to reproduce the teacher.

    Args:
        student (`LiteWhisperForConditionalGeneration`): the compressed model.
        teacher (`WhisperForConditionalGeneration`): the base model.

    Raises:
        InputError: the models differ in size, or the student has no low-rank pair.
    """
    if not any(student.config.low_rank_config or []):
        raise InputError("the model has no low-rank pairs, so there is nothing to train; compress it further")
    for size in SHARED_SIZES:
        ours, theirs = getattr(student.config, size), getattr(teacher.config, size)
        if ours != theirs:
            raise InputError(
                f"the model was not compressed from this base model: {size} is {ours} in the compressed model and "
                f"{theirs} in the base model; give the Whisper from which it was compressed",
                setting="base_model",
            )


@torch.no_grad()
def balance(model: nn.Module) -> None:
    """Rescales the factors of every pair to equal singular values, in place, without changing their product."""
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            set_factors(pair, balance_factors(Factors(pair.weight1.double(), pair.weight2.double(), pair.bias)))


def freeze(model: nn.Module) -> None:
    """Freezes all parameters except the factors of the low-rank pairs."""
    model.requires_grad_(False)
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            pair.weight1.requires_grad_(True)
            pair.weight2.requires_grad_(True)


def recover(  # noqa: PLR0913, PLR0917
    student: LiteWhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    clips: Iterable[Clip],
    num_windows: int,
    folder: Path,
    settings: Recovery,
    origin: dict[str, Any] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """
    Trains the low-rank factors of a student, in place, to reproduce its teacher's outputs.

    One window in ten is held out, and the checkpoint with the lowest held-out loss is kept. If none improves on the
    initial model, the student is left unchanged.

    Args:
        student (`LiteWhisperForConditionalGeneration`): the compressed model, in float32, on the device to train on.
        teacher (`WhisperForConditionalGeneration`): the base model. While it runs, it takes the student's place on the
            device; afterwards it is on the CPU.
        extractor (`WhisperFeatureExtractor`): the feature extractor of both models.
        clips (`Iterable[Clip]`): audio without transcripts.
        num_windows (`int`): maximum number of windows.
        folder (`Path`): folder for distillation data and checkpoints, from which an interrupted recovery resumes.
        settings (`Recovery`): the training settings.
        origin (`dict[str, Any]`, *optional*): everything else that affects the result, such as the models and datasets.
        dtype (`str`, *optional*, defaults to `"float32"`): data type of the computation; `"bfloat16"` trains with
            autocast.

    Returns:
        `dict[str, Any]`: the settings, the learning rate, the number of steps, and the held-out loss before and after.

    Raises:
        InputError: the models do not match, the audio is too short or has no speech, or the folder holds results of
            other settings.
    """
    check_pair(student, teacher)
    device = student.device
    PartialState(cpu=device.type == "cpu")  # initialises the process group
    start_time = time.monotonic()
    length = "minutes" if settings.steps is None else "steps"
    schedule = {length: getattr(settings, length), "dtype": dtype}
    # Distillation data can be reused for any number of steps, checkpoints cannot.
    data_origin = {
        **(origin or {}),
        **{name: value for name, value in asdict(settings).items() if name not in DURATION_SETTINGS},
    }
    training = folder / "training"
    with PartialState().main_process_first():
        record_origin(training, data_origin | schedule)
        checkpoint = last_checkpoint(training)
    parts = _split(list(itertools.islice(split_into_windows(clips, extractor.n_samples), num_windows)))
    student.to("cpu")  # type: ignore[arg-type]
    train, test = _distillation_data(teacher, extractor, parts, folder, settings, data_origin, device)
    student.to(device)  # type: ignore[arg-type]
    balance(student)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    freeze(student)
    start = {name: value.detach().clone() for name, value in student.named_parameters() if value.requires_grad}

    def make_trainer(steps: int, rate: float = 0.0) -> RecoveryTrainer:
        arguments = training_arguments(settings, steps, rate, training, dtype, device)
        return RecoveryTrainer(student, settings, arguments, train_dataset=train, eval_dataset=test)

    trial = make_trainer(EVALUATIONS)
    rate = choose_learning_rate(trial) if settings.learning_rate is None else settings.learning_rate
    saved = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint else None
    steps = saved.max_steps if saved else settings.steps
    if not steps:
        steps = affordable_steps(trial, 60 * settings.minutes - (time.monotonic() - start_time))
    trainer = make_trainer(steps, rate)
    trainer.state = saved or trainer.state
    before, after = _train(trainer, checkpoint)
    if not after < before:
        logger.warning("recovery did not lower the loss on held-out audio; the model is left unchanged")
        student.load_state_dict(start, strict=False)
        after = before
    for parameter in trainable:  # the position embeddings stay frozen
        parameter.requires_grad_(True)
    student.eval()
    result = {"learning_rate": rate, "steps": trainer.state.global_step}
    return {**asdict(settings), **result, "loss_before": before, "loss_after": after}


def _split(windows: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Splits the windows into a training part and a held-out part."""
    if len(windows) < 2:
        raise InputError(
            "recovery needs at least two windows of audio, one of which is held out; give more audio", setting="dataset"
        )
    held_out = list(windows[HELD_OUT_INTERVAL - 1 :: HELD_OUT_INTERVAL] or windows[-1:])
    train = [window for window in windows if not any(window is other for other in held_out)]
    return {"train": train, "test": held_out}


def _distillation_data(
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    parts: dict[str, list[Clip]],
    folder: Path,
    settings: Recovery,
    origin: dict[str, Any],
    device: torch.device,
) -> list[DistillationDataset]:
    """Runs the teacher over both parts, on the device if it fits, and returns their distillation data."""
    try:
        teacher.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        move_to_cpu(teacher)

    def run_teacher(variants: range) -> list[list[Path]]:
        return [
            write_distillation_data(teacher, extractor, windows, settings, folder / name, origin, variants)
            for name, windows in parts.items()
        ]

    files = run_teacher(range(1))
    seconds = sum(map(teacher_seconds, files)) / PartialState().num_processes
    variants = settings.variants if settings.steps else _affordable_variants(settings, seconds)
    if variants > 1:
        files = [first + rest for first, rest in zip(files, run_teacher(range(1, variants)), strict=True)]
    teacher.to("cpu")  # type: ignore[arg-type]
    if not all(any(map(count_text_tokens, part)) for part in files):
        raise InputError("the base model finds no speech in the audio; give recordings of speech", setting="dataset")
    return [DistillationDataset(part) for part in files]


def _affordable_variants(settings: Recovery, seconds: float) -> int:
    """Returns how many variants of the audio, each taking `seconds`, fit into the teacher's share of the time."""
    return min(settings.variants, max(1, int(TEACHER_TIME_SHARE * 60 * settings.minutes / seconds)))


def _train(trainer: RecoveryTrainer, checkpoint: Path | None) -> tuple[float, float]:
    """Trains, resuming from the checkpoint if given, and returns the held-out loss before and after."""
    finished = trainer.state.global_step >= trainer.args.max_steps  # `train` would run another step
    try:
        if not finished:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except FloatingPointError as error:
        logger.warning(
            "%s at step %d: training stopped early; use a lower learning rate", error, trainer.state.global_step
        )
        finished = True
    if finished and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    before = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    return before, trainer.evaluate()["eval_loss"]
