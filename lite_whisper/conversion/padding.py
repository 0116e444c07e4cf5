"""Any Whisper in, the same model with what its encoder computes at padded positions out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..audio import AudioDataset
from ..audio.windows import feature_batches
from ..common.errors import InputError
from ..common.files import check_output
from ..common.processes import is_main_process, join, shard
from ..lowrank.compression import empty_lite_model
from ..lowrank.padding import fit_padding, set_padding_tables
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.compression_json import read_compression
from ..models.folders import encoder_parameters, load_model, model_files
from .saving import save_model_folder
from .settings import NOISE, Noise


@dataclass(frozen=True)
class PaddingSettings:
    """
    Which model is to know its padding, from which audio.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`): audio without transcripts: files, folders or Hub datasets.
        overwrite (`bool`): whether a model folder at `output` is replaced.
        num_windows (`int`): windows of audio.
        noise (`tuple`): range of signal-to-noise ratios in dB, as in `ConversionSettings`.
        seed (`int`): of the samples, the noise, and the lengths and loudness that they are given.
        batch_size (`int`): windows that run at once.
        device (`str`, *optional*): cuda where there is a GPU by default.
    """

    model: str
    output: Path
    dataset: Sequence[str]
    overwrite: bool = False
    num_windows: int = 100
    noise: Noise = NOISE
    seed: int = 0
    batch_size: int = 4
    device: str | None = None


def update_padding(model: LiteWhisperForConditionalGeneration, batches: Iterable[torch.Tensor], seed: int) -> None:
    """
    Lets a model learn its padding, in place; one that knew it learns it anew, and stays switched on or off.

    Args:
        model (`LiteWhisperForConditionalGeneration`): in fp32, on the device to compute on.
        batches (`Iterable[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): this process's shard of the
            calibration windows.
        seed (`int`): of the lengths and loudness that they are given.
    """
    enabled = not model.config.constant_padding or model.config.constant_padding["enabled"]
    set_padding_tables(model, fit_padding(model, list(batches), seed))
    model.use_constant_padding(enabled)


def precompute_padding(settings: PaddingSettings) -> int:
    """
    Learns what a model computes at padded positions, and writes the model with it as a model folder.

    Args:
        settings (`PaddingSettings`): what to do.

    Returns:
        `int`: how many parameters the encoder has more.

    Raises:
        InputError: model, audio or output cannot be used.
    """
    check_output(settings.output, settings.model, settings.overwrite)
    device = join(settings.device)
    model, processor = load_model(settings.model)
    files, _ = model_files(settings.model)
    if not (files / "tokenizer_config.json").exists():
        raise InputError(f"{settings.model} has no processor; complete it first with lite-whisper upgrade")
    stored_dtype, report = model.dtype, read_compression(files)
    if not isinstance(model, LiteWhisperForConditionalGeneration):
        model = empty_lite_model(model, [{} for _ in model.get_encoder().layers])
    before = encoder_parameters(model)
    model.float().to(device)  # type: ignore[arg-type]
    audio = AudioDataset(settings.dataset, seed=settings.seed)
    count, size = settings.num_windows, settings.batch_size
    windows = feature_batches(audio, processor.feature_extractor, count, size, settings.noise, settings.seed)
    update_padding(model, shard(windows), settings.seed)
    added = encoder_parameters(model) - before
    if report:
        report["constant_padding"] = True
    if report and "after" in report:
        for size_of, each in (
            ("encoder_parameters", 1),
            ("total_parameters", 1),
            ("weight_bytes", stored_dtype.itemsize),
        ):
            report["after"][size_of] += added * each
    if is_main_process():
        save_model_folder(model.to(dtype=stored_dtype), files, settings.output, report)  # type: ignore[call-arg]
    return added
