"""The training of low-rank factors: the loss, the arguments of transformers' `Trainer`, and its checkpoints."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.optim import Muon
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..common.files import write_json
from ..common.timing import now
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from .distillation_data import Recovery, collate, compared_layers

EVALUATIONS = 5
DIGESTS = "digests.json"
HIGHEST_RATE = 3e-4
RATE_OF_LOSS = 9e-4  # so much of the loss is the learning rate, chosen on calibration audio held out


class RecoveryTrainer(Trainer):
    """
    A `Trainer` whose loss compares a student with what a teacher said of the same features.

    loss = states * d(s, t) + layers * mean over layers of d(s_l, t_l) + decoder * d(u, v), where s and t are the
    outputs of the encoders, s_l and t_l those of their layers, u and v what the decoder, which is the same in both,
    makes of s and t before each token of the teacher's transcript, and d(s, t) = mean((s - t)^2) / var(t). Every term
    is taken of each window by itself and averaged over windows, so that it does not matter which windows are in a batch
    together, or in which process.
    """

    def __init__(
        self, student: LiteWhisperForConditionalGeneration, settings: Recovery, args: TrainingArguments, **more: Any
    ) -> None:
        self.student = student.model  # without its head over the vocabulary
        self.settings = settings
        # Updates without singular values: layers whose inputs have a few huge directions do not hold back the others.
        muon = {"lr": args.learning_rate, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        super().__init__(self.student, data_collator=collate, optimizer_cls_and_kwargs=(Muon, muon), args=args, **more)
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


def relative_distance(ours: torch.Tensor, theirs: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mean square of the difference as a fraction of the variance of the latter, averaged over windows.

    Args:
        ours (`torch.Tensor` of shape `(windows, positions, d_model)`): what the student computes.
        theirs (`torch.Tensor` of shape `(windows, positions, d_model)`): what the teacher does.
        counted (`torch.Tensor` of shape `(windows, positions)`, *optional*): which positions count, by default all.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    theirs = theirs.float()
    weights = torch.ones_like(theirs[..., 0]) if counted is None else counted.float()
    weights = weights / weights.sum(dim=1, keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values.mean(dim=2) * weights).sum(dim=1)

    variance = mean((theirs - mean(theirs)[:, None, None]).square())
    return (mean((ours.float() - theirs).square()) / variance).mean()


def training_arguments(
    settings: Recovery, steps: int, rate: float, folder: Path, dtype: str, device: torch.device
) -> TrainingArguments:
    """The arguments of a `RecoveryTrainer` that keeps the best of `EVALUATIONS` checkpoints in a folder."""
    interval = max(1, steps // EVALUATIONS)
    on_cuda = device.type == "cuda"
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        bf16=dtype == "bfloat16",
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
        disable_tqdm=False,
        use_cpu=device.type == "cpu",
    )


@torch.no_grad()
def learning_rate_of(trial: RecoveryTrainer) -> float:
    """
    A learning rate for this student: in proportion to its loss on what is held out, but no higher than `HIGHEST_RATE`.

    The less there is to learn, the smaller are the steps that still lead there.
    """
    trial.student.eval()
    losses = []
    for inputs in trial.get_eval_dataloader():
        with trial.compute_loss_context_manager():
            losses.append(trial.compute_loss(trial.student, trial._prepare_inputs(inputs)))
    loss = float(trial.accelerator.gather(torch.stack(losses)).mean())
    return min(HIGHEST_RATE, RATE_OF_LOSS * loss)


def affordable_steps(trial: RecoveryTrainer, seconds: float) -> int:
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


class WriteDigests(TrainerCallback):
    """Puts into every checkpoint, once the rest of it is written, the digests by which `_is_whole` knows it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer."""
        processes = PartialState()
        processes.wait_for_everyone()  # each writes a file of its own
        if processes.is_main_process:
            checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(checkpoint / DIGESTS, {path.name: _digest(path) for path in checkpoint.iterdir()})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
        return all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """
    The newest checkpoint that is whole, together with the best that it names.

    What is not, because a run was killed or the disk is damaged, and what is newer, are removed.

    Returns:
        `Path`: its folder, or `None`.
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
