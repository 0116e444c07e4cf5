"""Recovery of a compressed model that lies in a folder or on the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio import AudioDataset, feature_batches
from ..common.files import check_output, unfinished
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
    What is to be recovered, from which audio.

    Args:
        model (`str`): Hub id or folder of the compressed model.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`): audio without transcripts: files, folders or Hub datasets.
        base_model (`str`, *optional*): the original Whisper; by default the one named in the compressed model.
        overwrite (`bool`): whether a model folder at `output` is replaced.
        num_windows (`int`): windows of audio.
        device (`str`, *optional*): to train on; cuda where there is a GPU by default.
        dtype (`str`): `"float32"`, or `"bfloat16"` for mixed precision (autocast).
        training (`Recovery`): how to train.
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
    Trains a compressed model to agree with the model before compression, and writes the result as a model folder.

    A model that knows its padding learns it anew.

    Args:
        settings (`RecoverySettings`): what to do.

    Returns:
        What `training.recovery.recover` returns: steps, and the loss on the audio held out before and after.

    Raises:
        InputError: models, audio or output cannot be used.
    """
    check_output(settings.output, settings.model, settings.overwrite)
    student, files = load_compressed_model(settings.model)
    teacher_name = settings.base_model or base_model_of(settings.model)
    teacher, teacher_files = load_base_model(teacher_name)
    stored_dtype = student.dtype
    report = read_compression(files) or {}
    if report:
        rendered_card(files, settings.output.name)  # fails now, not after the training
    datasets = [public_name(source) for source in settings.dataset]
    origin = {"student": fingerprint(student), "teacher": fingerprint(teacher), "num_windows": settings.num_windows}
    student.float().to(join(settings.device))  # type: ignore[arg-type]
    with unfinished(settings.output, is_main_process()) as work:
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
        if student.config.constant_padding:  # the silence has become another one
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
