"""Recovery: low-rank factors learn from the model that they were made from, on audio without transcripts."""

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..audio import SAMPLING_RATE, Clip, feature_batches, windows_of
from ..common.errors import InputError
from ..common.files import check_same, read_kept, write_kept
from ..common.tensor_files import load_tensors, save_tensors
from ..common.timing import now
from ..lowrank.compression import set_factors
from ..lowrank.spectrum import Factors, balanced
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration, LowRankLinear
from ..models.layers import layer_inputs, transcripts

logger = logging.getLogger(__name__)

HELD_OUT = 10  # one window in so many is not trained on, but decides which step is the best
EVALUATIONS = 5
LAYERS = 5  # at the most so many outputs of layers below the last are compared, evenly spaced
PIECE = (0.5, 4.0)  # seconds; what the windows of all variants but the first are put together from
DIGESTS = "digests.json"
SAME = ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins", "max_source_positions")


@dataclass(frozen=True)
class Recovery:
    """
    How recovery trains; the defaults were chosen on held-out calibration strings of the miniature.

    steps : int, None for as many as fit into `minutes`
    minutes : float, all of it together: the teacher's part and the student's
    learning_rate : float, the highest, reached after a twentieth of the steps; it falls to 0 as a cosine
    states, layers, decoder : float, weights of the losses, see `RecoveryTrainer`
    variants : int, copies of the audio, each in noise of its own; all but the first are pieces in random order
    noise : tuple, range of signal-to-noise ratios in dB, or ()
    """

    steps: int | None = None
    minutes: float = 10.0
    learning_rate: float = 1e-3
    states: float = 1.0
    layers: float = 1.0
    decoder: float = 0.2
    variants: int = 8
    noise: tuple[float, float] | tuple[()] = (0.0, 40.0)
    batch_size: int = 8
    seed: int = 0


class Lessons(Dataset):
    """What the teacher said of each window, read from files when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places = []
        for file in files:
            with safe_open(file, framework="pt") as lesson:
                self._places += [(file, row) for row in range(lesson.get_slice("tokens").get_shape()[0])]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        file, row = self._places[index]
        with safe_open(file, framework="pt") as lesson:
            return {name: lesson.get_slice(name)[row] for name in lesson.keys()}  # noqa: SIM118


def collate(lessons: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Lessons to a batch; texts are filled up with 0, of which nothing is predicted."""

    def stacked(name: str, dim: int = 0) -> torch.Tensor:
        return torch.stack([lesson[name] for lesson in lessons], dim)

    def filled(name: str) -> torch.Tensor:
        return pad_sequence([lesson[name] for lesson in lessons], batch_first=True)

    return {
        "input_features": stacked("features"),
        "decoder_input_ids": filled("tokens"),
        "predicted": filled("predicted"),
        "decoder_states": filled("decoder_states"),
        "layers": stacked("layers", dim=1),
        "states": stacked("states"),
    }


def spliced(windows: Sequence[Clip], length: int, generator: np.random.Generator) -> Clip:
    """A window of half the length or more, put together from random pieces of others, so that no text comes twice."""
    wanted = int(generator.integers(length // 2, length))
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < wanted:
        samples = windows[int(generator.integers(len(windows)))].samples
        size = int(SAMPLING_RATE * generator.uniform(*PIECE))
        start = int(generator.integers(max(1, len(samples) - size)))
        pieces.append(samples[start : start + size])
    return Clip("spliced", np.concatenate(pieces)[:wanted])


def compared_layers(encoder_layers: int) -> list[int]:
    """Which layers' outputs are compared, besides that of the whole encoder: places in `hidden_states`."""
    return sorted({round(place) for place in np.linspace(1, encoder_layers - 1, min(LAYERS, encoder_layers - 1))})


@torch.no_grad()
def teach(
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    windows: Sequence[Clip],
    settings: Recovery,
    folder: Path,
    origin: dict[str, Any],
) -> list[Path]:
    """
    Runs the teacher over the audio once and keeps what it says: greedy transcripts, and outputs of the layers compared
    and of the decoder (fp16).

    A step that reads this back takes a fraction of the time of one that also runs the teacher, which is larger than the
    student and would have to transcribe, and the device never holds both models. Disk: for each window and variant
    24 MB for large-v3 (30 s), so 19 GB for 100 windows and 8 variants. Several processes share the work.

    Args:
        teacher (`WhisperForConditionalGeneration`): the model before compression, on any device.
        extractor (`WhisperFeatureExtractor`): its own.
        windows (`Sequence[Clip]`): audio, at the most as long as the extractor's window.
        settings (`Recovery`): how many variants, in which noise.
        folder (`Path`): for the files; those that are there and whole are kept.
        origin (`dict`): what decides the contents; files that were made otherwise are refused.

    Returns:
        One file for each batch.

    Raises:
        InputError: the teacher hears no speech, or the files are of something else.
    """
    state = PartialState()
    kept = folder / "origin.json"
    with state.main_process_first():
        if kept.exists():
            check_same(read_kept(kept), json.loads(json.dumps(origin)), kept)
        else:
            write_kept(kept, origin)
    files: list[Path] = []
    total = len(windows) * settings.variants
    with tqdm(desc="teacher", unit="window", total=total, disable=not state.is_main_process) as progress:
        for variant in range(settings.variants):
            generator = np.random.default_rng([settings.seed, variant])
            audio = [spliced(windows, extractor.n_samples, generator) if variant else window for window in windows]
            batches = feature_batches(
                audio, extractor, len(audio), settings.batch_size, settings.noise, settings.seed + variant
            )
            for number, features in enumerate(batches):
                files.append(folder / f"{variant:02}_{number:05}.safetensors")
                if len(files) % state.num_processes == state.process_index and not _is_lesson(files[-1]):
                    save_tensors(_lesson(teacher, features), files[-1], {})
                progress.update(len(features))
    state.wait_for_everyone()
    words = 0
    for file in files:
        with safe_open(file, framework="pt") as lesson_file:
            predicted = lesson_file.get_tensor("predicted")
        words += int(predicted.sum()) - len(predicted)  # the end is predicted in silence too
    if not words:
        raise InputError("the teacher hears no speech in the audio; give recordings of speech")
    return files


def _is_lesson(file: Path) -> bool:
    try:
        load_tensors(file)
    except FileNotFoundError:
        return False
    except (SafetensorError, ValueError) as error:
        logger.warning("%s is damaged (%s) and made anew", file, error)
        return False
    return True


def _lesson(teacher: WhisperForConditionalGeneration, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the teacher says of a batch; where its device has no room, it goes on on the CPU."""
    try:
        encoder = teacher.get_encoder()
        *inputs, last = layer_inputs(encoder, features.to(teacher.device, teacher.dtype))
        states = encoder.layer_norm(last)
        tokens, predicted, _ = transcripts(teacher, states)
        decoded = teacher.get_decoder()(input_ids=tokens, encoder_hidden_states=states)
    except torch.OutOfMemoryError:
        if teacher.device.type == "cpu":
            raise
        return _lesson(_on_cpu(teacher), features)
    layers = [inputs[place].half() for place in compared_layers(teacher.config.encoder_layers)]
    return {
        "features": features,
        "layers": torch.stack(layers, dim=1),
        "states": states.half(),
        "decoder_states": decoded.last_hidden_state.half(),
        "tokens": tokens,
        "predicted": predicted,
    }


def _on_cpu(teacher: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    logger.warning("no room for the teacher on the device: it runs on the CPU, once over the audio")
    return teacher.to("cpu")  # type: ignore[arg-type]


@torch.no_grad()
def balance(model: nn.Module) -> None:
    """Gives both factors of every pair the same singular values, in place; their product stays as it is."""
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            set_factors(pair, balanced(Factors(pair.weight1.double(), pair.weight2.double(), pair.bias)))


def freeze(model: nn.Module) -> None:
    """Leaves nothing but the low-rank pairs to be trained."""
    model.requires_grad_(False)
    for pair in model.modules():
        if isinstance(pair, LowRankLinear):
            pair.requires_grad_(True)


class RecoveryTrainer(Trainer):
    """
    A `Trainer` whose loss compares a student with what a teacher said of the same features.

    loss = states * d(s, t) + layers * mean over layers of d(s_l, t_l) + decoder * d(u, v), where s and t are the
    outputs of the encoders, s_l and t_l those of their layers, u and v what the decoder, which is the same in both,
    makes of s and t before each token of the teacher's transcript, and d(s, t) = mean((s - t)^2) / var(t). Every term
    is taken of each window by itself and averaged over windows, so that it does not matter which windows are in a batch
    together, or in which process.
    """

    def __init__(self, student: LiteWhisperForConditionalGeneration, settings: Recovery, **arguments: Any) -> None:
        self.student = student.model  # without its head over the vocabulary
        self.settings = settings
        super().__init__(self.student, data_collator=collate, **arguments)
        self.add_callback(WriteDigests())

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch from `collate`."""
        ours = model(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["decoder_input_ids"],
            output_hidden_states=True,
            use_cache=False,
        )
        layers = ours.encoder_hidden_states
        distances = [
            relative_distance(layers[place], wanted)
            for place, wanted in zip(compared_layers(len(layers) - 1), inputs["layers"], strict=True)
        ]
        loss = (
            self.settings.states * relative_distance(ours.encoder_last_hidden_state, inputs["states"])
            + self.settings.layers * torch.stack(distances).mean()
            + self.settings.decoder
            * relative_distance(ours.last_hidden_state, inputs["decoder_states"], inputs["predicted"])
        )
        # Of all processes, so that none is left waiting for one that has stopped.
        if model.training and not self.accelerator.gather(loss.detach()).isfinite().all():
            raise FloatingPointError("the loss is NaN or infinite")
        return (loss, {"last_hidden_state": ours.last_hidden_state}) if return_outputs else loss


class WriteDigests(TrainerCallback):
    """Puts into every checkpoint, once the rest of it is written, the digests by which `_is_whole` knows it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer."""
        processes = PartialState()
        processes.wait_for_everyone()  # each writes a file of its own
        if processes.is_main_process:
            checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_kept(checkpoint / DIGESTS, {path.name: _digest(path) for path in checkpoint.iterdir()})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
        return all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def relative_distance(ours: torch.Tensor, theirs: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mean square of the difference as a share of the variance of the latter, averaged over windows.

    Args:
        ours: shape = (windows, positions, d_model).
        theirs: of the same shape.
        counted: which positions count, all by default; shape = (windows, positions).
    """
    theirs = theirs.float()
    weights = torch.ones_like(theirs[..., 0]) if counted is None else counted.float()
    weights = weights / weights.sum(dim=1, keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values.mean(dim=2) * weights).sum(dim=1)

    variance = mean((theirs - mean(theirs)[:, None, None]).square())
    return (mean((ours.float() - theirs).square()) / variance).mean()


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
                "name the Whisper that was compressed with --teacher"
            )


def recover(
    student: LiteWhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    clips: Iterable[Clip],
    num_samples: int,
    folder: Path,
    settings: Recovery,
    origin: dict[str, Any] | None = None,
    bf16: bool = False,
) -> dict[str, Any]:
    """
    Trains the low-rank factors of a student, in place, on what its teacher says of the same audio.

    What comes out is never worse than what went in: one window in ten is held out, and the step that is best there is
    kept, be it the first.

    Args:
        student (`LiteWhisperForConditionalGeneration`): in fp32, on the device to train on.
        teacher (`WhisperForConditionalGeneration`):
            The model that it was made from. It is on that device while it is needed, in the place of the student, and
            on the CPU afterwards.
        extractor (`WhisperFeatureExtractor`): of both.
        clips (`Iterable[Clip]`): audio without transcripts.
        num_samples (`int`): windows to take at the most.
        folder (`Path`): for lessons and checkpoints, from which an interrupted recovery goes on.
        settings (`Recovery`): how to train.
        origin (`dict`, *optional*): what decides the outcome besides the settings.
        bf16 (`bool`): whether to compute in bfloat16 where that is safe (autocast).

    Returns:
        The settings, the steps taken, and the loss on the held-out part before and after.

    Raises:
        InputError: student and teacher do not fit, there is no speech, or what is in the folder was made otherwise.
    """
    check_pair(student, teacher)
    device = student.device
    PartialState(cpu=device.type == "cpu")  # so that several processes know of each other from here on
    began = time.monotonic()
    lasting = {name: value for name, value in asdict(settings).items() if name not in ("steps", "minutes")}
    # Lessons serve any number of steps, a checkpoint does not.
    kept_schedule = folder / "schedule.json"
    length = {"minutes": settings.minutes} if settings.steps is None else {"steps": settings.steps}
    schedule: dict[str, Any] = {**length, "bf16": bf16}
    with PartialState().main_process_first():
        checkpoint = _last_checkpoint(folder)
        if checkpoint:
            check_same(read_kept(kept_schedule), schedule, kept_schedule)
    windows = list(itertools.islice(windows_of(clips, extractor.n_samples), num_samples))
    if len(windows) < 2:
        raise InputError("there is too little audio to hold some out; give more")
    held_out = windows[HELD_OUT - 1 :: HELD_OUT] or windows[-1:]
    kept = [window for window in windows if not any(window is other for other in held_out)]
    student.to("cpu")  # type: ignore[arg-type]
    try:
        teacher.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        _on_cpu(teacher)
    train, test = (
        Lessons(teach(teacher, extractor, part, settings, folder / name, {**(origin or {}), **lasting}))
        for name, part in (("train", kept), ("test", held_out))
    )
    teacher.to("cpu")  # type: ignore[arg-type]
    student.to(device)  # type: ignore[arg-type]
    balance(student)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    freeze(student)
    start = {name: value.detach().clone() for name, value in student.named_parameters() if value.requires_grad}
    if not checkpoint and PartialState().is_main_process:
        write_kept(kept_schedule, schedule)
    if checkpoint:
        steps = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).max_steps
    elif settings.steps:
        steps = settings.steps
    else:
        arguments = training_arguments(settings, EVALUATIONS, folder, bf16, device)
        trial = RecoveryTrainer(student, settings, args=arguments, train_dataset=train, eval_dataset=test)
        steps = _affordable_steps(trial, 60 * settings.minutes - (time.monotonic() - began))
    trainer = RecoveryTrainer(
        student,
        settings,
        args=training_arguments(settings, steps, folder, bf16, device),
        train_dataset=train,
        eval_dataset=test,
    )
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except FloatingPointError as error:
        logger.warning("%s at step %d: recovery stops; lower the learning rate", error, trainer.state.global_step)
        if trainer.state.best_model_checkpoint:
            trainer._load_best_model()
    before = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    after = trainer.evaluate()["eval_loss"]
    if not after < before:
        logger.warning("recovery did not help on the audio that was held out; the model is left as it was")
        student.load_state_dict(start, strict=False)
        after = before
    for parameter in trainable:  # all but the position embeddings
        parameter.requires_grad_(True)
    student.eval()
    return {**asdict(settings), "steps": trainer.state.global_step, "loss_before": before, "loss_after": after}


def _last_checkpoint(folder: Path) -> Path | None:
    """
    The newest checkpoint that is whole, together with the best that it names.

    What is not, because a run was killed or the disk is damaged, and what is newer, are removed.
    """
    checkpoints = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = {checkpoint.resolve() for checkpoint in checkpoints if _is_whole(checkpoint)}
    for checkpoint in reversed(checkpoints):
        if checkpoint.resolve() in whole:
            best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
            if best is None or Path(best).resolve() in whole:
                return checkpoint
        shutil.rmtree(checkpoint)
    return None


def training_arguments(
    settings: Recovery, steps: int, folder: Path, bf16: bool, device: torch.device
) -> TrainingArguments:
    """The arguments of a `RecoveryTrainer` that keeps the best of `EVALUATIONS` checkpoints in a folder."""
    interval = max(1, steps // EVALUATIONS)
    on_cuda = device.type == "cuda"
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=bf16,
        seed=settings.seed,
        dataloader_num_workers=4 if on_cuda else 0,
        dataloader_persistent_workers=on_cuda,
        remove_unused_columns=False,
        label_names=["states"],
        prediction_loss_only=True,
        # An evaluation before train() would leave the model without what adds up the gradients of several processes.
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=interval,
        logging_nan_inf_filter=False,
        report_to="none",
        use_cpu=device.type == "cpu",
    )


def _affordable_steps(trial: RecoveryTrainer, seconds: float) -> int:
    """How many steps, and the evaluations between them, fit into a time; measured on a few."""
    device, accelerator = trial.args.device, trial.accelerator
    inputs = trial._prepare_inputs(next(iter(trial.get_train_dataloader())))
    forward, whole = [], []
    for _ in range(4):
        start = now(device)
        with trial.compute_loss_context_manager():
            loss = trial.compute_loss(trial.student, inputs)
        forward.append(now(device) - start)
        loss.backward()
        whole.append(now(device) - start)
    trial.student.zero_grad(set_to_none=True)
    evaluation = sorted(forward)[1] * len(trial.get_eval_dataloader())
    left = seconds - (EVALUATIONS + 2) * evaluation
    steps = torch.tensor(int(left / sorted(whole)[1] / EVALUATIONS), device=device)
    return EVALUATIONS * max(1, int(accelerator.gather(steps).min()))
