"""Recovers a compressed model by distillation from its base model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio import AudioDataset, feature_batches
from ..common.files import check_output, working_folder
from ..common.processes import is_main_process, join, shard
from ..models.compression_json import public_name, read_compression
from ..models.folders import base_model_of, fingerprint, load_base_model, load_compressed_model, load_processor
from ..publishing.card import rendered_card
from ..training.recovery import Recovery, recover
from .padding import update_padding
from .saving import save_model_folder


@dataclass(frozen=True)
class RecoverySettings:
    """
    Settings of a recovery.

    Args:
        model (`str`): Hub id or folder of the compressed model.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`): audio without transcripts: files, folders or Hub datasets.
        base_model (`str`, *optional*): the original Whisper; by default the one named in the compressed model.
        overwrite (`bool`): whether to replace an existing model folder at `output`.
        num_windows (`int`): number of windows of audio.
        device (`str`, *optional*): device to train on; default: cuda if there is a GPU.
        dtype (`str`): `"float32"`, or `"bfloat16"` for mixed precision (autocast).
        training (`Recovery`): hyperparameters of the training.
    """

    model: str
    output: Path
    dataset: Sequence[str]
    base_model: str | None = None
    overwrite: bool = False
    num_windows: int = 100
    device: str | None = None
    dtype: str = "float32"
    training: Recovery = field(default_factory=Recovery)


def recover_model(settings: RecoverySettings) -> dict[str, Any]:
    """
    Trains a compressed model to reproduce the outputs of its base model and writes the result as a model folder.

    Precomputed padding is updated after training.

    Args:
        settings (`RecoverySettings`): models, audio and output.

    Returns:
        The result of `training.recovery.recover`: steps, and the loss on held-out audio before and after.

    Raises:
        InputError: the models, audio or output cannot be used.
    """
    check_output(settings.output, settings.model, settings.overwrite)
    student, files = load_compressed_model(settings.model)
    teacher_name = settings.base_model or base_model_of(settings.model)
    teacher, teacher_files = load_base_model(teacher_name)
    stored_dtype = student.dtype
    report = read_compression(files) or {}
    if report:
        rendered_card(files, settings.output.name)  # fails before the training rather than after it
    datasets = [public_name(source) for source in settings.dataset]
    origin = {"student": fingerprint(student), "teacher": fingerprint(teacher), "num_windows": settings.num_windows}
    student.float().to(join(settings.device))  # type: ignore[arg-type]
    with working_folder(settings.output, is_main_process()) as work:
        recovery = recover(
            student,
            teacher.float(),
            load_processor(teacher_files).feature_extractor,
            AudioDataset(settings.dataset, seed=settings.training.seed),
            settings.num_windows,
            work,
            settings.training,
            origin | {"datasets": datasets},
            settings.dtype,
        )
        if student.config.constant_padding:  # training changed the encoder's output on silence
            training, extractor = settings.training, load_processor(files).feature_extractor
            audio, count = AudioDataset(settings.dataset, seed=training.seed), settings.num_windows
            windows = feature_batches(audio, extractor, count, training.batch_size, training.noise, training.seed)
            update_padding(student, shard(windows), training.seed)
        report = {
            "base_model": public_name(teacher_name),
            "low_rank_config": student.config.low_rank_config,
            **report,
            "recovery": {**recovery, "datasets": datasets, "num_windows": settings.num_windows},
        }
        if is_main_process():
            save_model_folder(student.to(dtype=stored_dtype), files, settings.output, report)  # type: ignore[call-arg]
    return recovery
