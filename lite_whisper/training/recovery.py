"""Recovery: low-rank factors learn from the model that they were made from, on audio without transcripts."""

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
from ..lowrank.spectrum import Factors, balanced
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration, LowRankLinear
from .distillation_data import DistillationDataset, Recovery, on_cpu, seconds_of, words_in, write_distillation_data
from .trainer import (
    EVALUATIONS,
    RecoveryTrainer,
    affordable_steps,
    last_checkpoint,
    learning_rate_of,
    training_arguments,
)

logger = logging.getLogger(__name__)

HELD_OUT = 10  # one window in so many is not trained on, but decides which step is the best
TEACHING = 1 / 3  # of the time is the teacher's at the most, unless one run over the audio takes it longer
LENGTH = ("steps", "minutes")
SAME = ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins", "max_source_positions")


def check_pair(student: LiteWhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> None:
    """
    Makes sure that the student was made from a model like the teacher.

    Raises:
        InputError: a size differs, or the student has nothing to train.
    """
    if not any(student.config.low_rank_config or []):
        raise InputError("the student has no low-rank pair and so nothing to train; compress it to a smaller size")
    for size in SAME:
        ours, theirs = getattr(student.config, size), getattr(teacher.config, size)
        if ours != theirs:
            raise InputError(
                f"the student was not made from this teacher: {size} is {ours} in the one and {theirs} in the other; "
                "name the Whisper that was compressed",
                setting="teacher",
            )


@torch.no_grad()
def balance(model: nn.Module) -> None:
    """Gives both factors of every pair the same singular values, in place; their product stays as it is."""
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            set_factors(pair, balanced(Factors(pair.weight1.double(), pair.weight2.double(), pair.bias)))


def freeze(model: nn.Module) -> None:
    """Leaves nothing but the factors of the low-rank pairs to be trained."""
    model.requires_grad_(False)
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            pair.weight1.requires_grad_(True)
            pair.weight2.requires_grad_(True)


def recover(
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
    Trains the low-rank factors of a student, in place, on what its teacher says of the same audio.

    What comes out is never worse than what went in: one window in ten is held out, and the step that is best there is
    kept, be it the first.

    Args:
        student (`LiteWhisperForConditionalGeneration`): in fp32, on the device to train on.
        teacher (`WhisperForConditionalGeneration`): the model that it was made from. It is on that device while it is
            needed, in the place of the student, and on the CPU afterwards.
        extractor (`WhisperFeatureExtractor`): of both.
        clips (`Iterable[Clip]`): audio without transcripts.
        num_windows (`int`): windows to take at the most.
        folder (`Path`): for lessons and checkpoints, from which an interrupted recovery goes on.
        settings (`Recovery`): how to train.
        origin (`dict[str, Any]`, *optional*): what decides the outcome besides the settings.
        bf16 (`bool`, *optional*, defaults to `False`): whether to compute in bfloat16 where that is safe (autocast).

    Returns:
        `dict[str, Any]`: the settings, the steps taken, and the loss on the held-out part before and after.

    Raises:
        InputError: student and teacher do not fit, there is no speech, or what is in the folder was made otherwise.
    """
    check_pair(student, teacher)
    device = student.device
    PartialState(cpu=device.type == "cpu")  # so that several processes know of each other from here on
    began = time.monotonic()
    length = "minutes" if settings.steps is None else "steps"
    schedule = {length: getattr(settings, length), "dtype": dtype}
    # DistillationDataset serve any number of steps, a checkpoint does not.
    decisive = {**(origin or {}), **{name: value for name, value in asdict(settings).items() if name not in LENGTH}}
    training = folder / "training"
    with PartialState().main_process_first():
        record_origin(training, decisive | schedule)
        checkpoint = last_checkpoint(training)
    parts = _parts(list(itertools.islice(split_into_windows(clips, extractor.n_samples), num_windows)))
    student.to("cpu")  # type: ignore[arg-type]
    train, test = _distillation_data(teacher, extractor, parts, folder, settings, decisive, device)
    student.to(device)  # type: ignore[arg-type]
    balance(student)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    freeze(student)
    start = {name: value.detach().clone() for name, value in student.named_parameters() if value.requires_grad}

    def trainer_of(steps: int, rate: float = 0.0) -> RecoveryTrainer:
        arguments = training_arguments(settings, steps, rate, training, dtype, device)
        return RecoveryTrainer(student, settings, arguments, train_dataset=train, eval_dataset=test)

    trial = trainer_of(EVALUATIONS)
    rate = learning_rate_of(trial) if settings.learning_rate is None else settings.learning_rate
    kept = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint else None
    steps = kept.max_steps if kept else settings.steps
    if not steps:
        steps = affordable_steps(trial, 60 * settings.minutes - (time.monotonic() - began))
    trainer = trainer_of(steps, rate)
    trainer.state = kept or trainer.state
    before, after = _losses(trainer, checkpoint)
    if not after < before:
        logger.warning("recovery did not help on the audio that was held out; the model is left as it was")
        student.load_state_dict(start, strict=False)
        after = before
    for parameter in trainable:  # all but the position embeddings
        parameter.requires_grad_(True)
    student.eval()
    taken = {"learning_rate": rate, "steps": trainer.state.global_step}
    return {**asdict(settings), **taken, "loss_before": before, "loss_after": after}


def _parts(windows: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The windows to train on, and those that are held out."""
    if len(windows) < 2:
        raise InputError("there is too little audio to hold some out; give more", setting="dataset")
    held_out = list(windows[HELD_OUT - 1 :: HELD_OUT] or windows[-1:])
    kept = [window for window in windows if not any(window is other for other in held_out)]
    return {"train": kept, "test": held_out}


def _distillation_data(
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    parts: dict[str, list[Clip]],
    folder: Path,
    settings: Recovery,
    origin: dict[str, Any],
    device: torch.device,
) -> list[DistillationDataset]:
    """What the teacher says of each part; it is on the device meanwhile, where there is room for it."""
    try:
        teacher.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        on_cpu(teacher)

    def taught(variants: range) -> list[list[Path]]:
        return [
            write_distillation_data(teacher, extractor, windows, settings, folder / name, origin, variants)
            for name, windows in parts.items()
        ]

    files = taught(range(1))
    seconds = sum(map(seconds_of, files)) / PartialState().num_processes
    variants = settings.variants if settings.steps else _affordable_variants(settings, seconds)
    if variants > 1:
        files = [first + rest for first, rest in zip(files, taught(range(1, variants)), strict=True)]
    teacher.to("cpu")  # type: ignore[arg-type]
    if not all(any(map(words_in, of_part)) for of_part in files):
        raise InputError("the teacher hears no speech in the audio; give recordings of speech", setting="dataset")
    return [DistillationDataset(of_part) for of_part in files]


def _affordable_variants(settings: Recovery, seconds: float) -> int:
    """How many variants of the audio fit into the teacher's share of the time, if each takes so many seconds."""
    return min(settings.variants, max(1, int(TEACHING * 60 * settings.minutes / seconds)))


def _losses(trainer: RecoveryTrainer, checkpoint: Path | None) -> tuple[float, float]:
    """Trains, from a checkpoint where there is one; returns the loss on what was held out before and after."""
    finished = trainer.state.global_step >= trainer.args.max_steps  # `train` would take one more step
    try:
        if not finished:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except FloatingPointError as error:
        logger.warning("%s at step %d: recovery stops; lower the learning rate", error, trainer.state.global_step)
        finished = True
    if finished and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    before = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    return before, trainer.evaluate()["eval_loss"]
