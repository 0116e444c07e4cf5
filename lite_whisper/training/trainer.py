"""Training of the low-rank factors: the loss, the arguments of transformers' `Trainer`, and checkpoints."""

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

EVALUATIONS = 5  # during training, evenly spaced
DIGESTS = "digests.json"
MAX_LEARNING_RATE = 3e-4
LEARNING_RATE_PER_LOSS = 9e-4  # chosen on held-out calibration audio


class RecoveryTrainer(Trainer):
    """
    A `Trainer` whose loss compares the student's outputs with the distillation data.

    loss = states * d(s, t) + layers * mean over layers of d(s_l, t_l) + decoder * d(u, v), where s and t are the
    encoder outputs of student and teacher, s_l and t_l the outputs of their layers, and u and v the outputs of their
    decoders (which have the same weights) that predict the tokens of the teacher's transcript. The distance is
    d(s, t) = mean((s - t)^2) / var(t). Each term is computed per window and averaged over windows, so the loss does not
    depend on how windows are distributed over batches and processes.

    Args:
        student (`LiteWhisperForConditionalGeneration`): the model to train.
        settings (`Recovery`): the weights of the loss.
        args (`TrainingArguments`): see `training_arguments`.
        kwargs: further arguments of `Trainer`.
    """

    def __init__(
        self, student: LiteWhisperForConditionalGeneration, settings: Recovery, args: TrainingArguments, **kwargs: Any
    ) -> None:
        self.student = student.model  # without the output projection
        self.settings = settings
        # Muon orthogonalises its updates, so a few dominant input directions do not slow down the others.
        muon = {"lr": args.learning_rate, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        super().__init__(
            self.student, data_collator=collate, optimizer_cls_and_kwargs=(Muon, muon), args=args, **kwargs
        )
        self.add_callback(DigestCallback())

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Computes the loss of a batch from `collate`."""
        outputs = model(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["decoder_input_ids"],
            output_hidden_states=True,
            use_cache=False,
        )
        layers = outputs.encoder_hidden_states
        distances = [
            relative_distance(layers[index], target)
            for index, target in zip(compared_layers(len(layers) - 1), inputs["layers"], strict=True)
        ]
        loss = (
            self.settings.states * relative_distance(outputs.encoder_last_hidden_state, inputs["states"])
            + self.settings.layers * torch.stack(distances).mean()
            + self.settings.decoder
            * relative_distance(outputs.last_hidden_state, inputs["decoder_states"], inputs["predicted"])
        )
        # Checked across processes, so that all of them stop together.
        if model.training and not self.accelerator.gather(loss.detach()).isfinite().all():
            raise FloatingPointError("the loss is NaN or infinite")
        return (loss, {"last_hidden_state": outputs.last_hidden_state}) if return_outputs else loss


def relative_distance(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Computes the mean squared error relative to the variance of the target, averaged over windows.

    Args:
        output (`torch.Tensor` of shape `(windows, positions, d_model)`): output of the student.
        target (`torch.Tensor` of shape `(windows, positions, d_model)`): output of the teacher.
        mask (`torch.Tensor` of shape `(windows, positions)`, *optional*): positions to include, by default all.

    Returns:
        `torch.Tensor` of shape `()`: the distance.
    """
    target = target.float()
    weights = torch.ones_like(target[..., 0]) if mask is None else mask.float()
    weights = weights / weights.sum(dim=1, keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values.mean(dim=2) * weights).sum(dim=1)

    variance = mean((target - mean(target)[:, None, None]).square())
    return (mean((output.float() - target).square()) / variance).mean()


def training_arguments(
    settings: Recovery, steps: int, rate: float, folder: Path, dtype: str, device: torch.device
) -> TrainingArguments:
    """
    Builds the arguments of a `RecoveryTrainer` that evaluates `EVALUATIONS` times and restores the best checkpoint.

    Args:
        settings (`Recovery`): batch size and seed.
        steps (`int`): number of training steps.
        rate (`float`): peak learning rate.
        folder (`Path`): folder for the checkpoints.
        dtype (`str`): data type of the computation; `"bfloat16"` enables autocast.
        device (`torch.device`): device to train on.

    Returns:
        `TrainingArguments`: the arguments.
    """
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
        # evaluate() before train() would leave the model without gradient synchronisation between processes.
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
def choose_learning_rate(trial: RecoveryTrainer) -> float:
    """
    Chooses a learning rate in proportion to the held-out loss, up to `MAX_LEARNING_RATE`.

    The closer the student is to the teacher, the smaller the steps that still improve it.

    Args:
        trial (`RecoveryTrainer`): a trainer of the untrained student.

    Returns:
        `float`: the peak learning rate.
    """
    trial.student.eval()
    losses = []
    for inputs in trial.get_eval_dataloader():
        with trial.compute_loss_context_manager():
            losses.append(trial.compute_loss(trial.student, trial._prepare_inputs(inputs)))
    loss = float(trial.accelerator.gather(torch.stack(losses)).mean())
    return min(MAX_LEARNING_RATE, LEARNING_RATE_PER_LOSS * loss)


def affordable_steps(trial: RecoveryTrainer, seconds: float) -> int:
    """
    Estimates how many training steps fit into a time limit, including evaluations, from the times of a few steps.

    Args:
        trial (`RecoveryTrainer`): a trainer of the student; the weights do not change.
        seconds (`float`): the time limit.

    Returns:
        `int`: number of steps, a multiple of `EVALUATIONS` and at least that.
    """
    device, accelerator = trial.args.device, trial.accelerator
    inputs = trial._prepare_inputs(next(iter(trial.get_train_dataloader())))
    forward_times, step_times = [], []
    for _ in range(4):
        start = now(device)
        with trial.compute_loss_context_manager():
            loss = trial.compute_loss(trial.student, inputs)
        forward_times.append(now(device) - start)
        loss.backward()
        step_times.append(now(device) - start)
    trial.student.zero_grad(set_to_none=True)
    evaluation = sorted(forward_times)[1] * len(trial.get_eval_dataloader())
    remaining = seconds - (EVALUATIONS + 2) * evaluation
    steps = torch.tensor(int(remaining / sorted(step_times)[1] / EVALUATIONS), device=device)
    return EVALUATIONS * max(1, int(accelerator.gather(steps).min()))


class DigestCallback(TrainerCallback):
    """Adds a file of digests to every completed checkpoint, with which `last_checkpoint` verifies it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Writes the digests; called by the trainer after it has saved a checkpoint."""
        processes = PartialState()
        processes.wait_for_everyone()  # each process saves its own random state
        if processes.is_main_process:
            checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(checkpoint / DIGESTS, {path.name: _digest(path) for path in checkpoint.iterdir()})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
        return all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """
    Finds the newest complete checkpoint whose best checkpoint is complete as well.

    Newer checkpoints, which a killed run or a damaged disk left incomplete, are removed.

    Args:
        folder (`Path`): folder of the checkpoints.

    Returns:
        `Path`: folder of the checkpoint, or `None` if there is none.
    """
    checkpoints = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = {checkpoint.resolve() for checkpoint in checkpoints if _is_complete(checkpoint)}
    for checkpoint in reversed(checkpoints):
        if checkpoint.resolve() in complete:
            best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
            if best is None or Path(best).resolve() in complete:
                return checkpoint
        shutil.rmtree(checkpoint)
    return None
