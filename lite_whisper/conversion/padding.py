"""Precomputes padding: adds tables of the encoder's states at padded positions to a model."""

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
    Settings for learning the padding tables of a model.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`): audio without transcripts: files, folders or Hub datasets.
        overwrite (`bool`): whether to replace an existing model folder at `output`.
        num_windows (`int`): number of windows of audio.
        noise (`tuple`): range of signal-to-noise ratios in dB, as in `ConversionSettings`.
        seed (`int`): seed for sampling the audio, its noise, and the lengths and levels to which it is cut and scaled.
        batch_size (`int`): windows per batch.
        device (`str`, *optional*): device to compute on; default: cuda if there is a GPU.
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
    Computes or replaces the padding tables of a model in place. Existing tables stay enabled or disabled.

    Args:
        model (`LiteWhisperForConditionalGeneration`): model in float32, on the device to compute on.
        batches (`Iterable[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): this process's shard of the
            calibration windows.
        seed (`int`): seed for the lengths and levels to which the windows are cut and scaled.
    """
    enabled = not model.config.constant_padding or model.config.constant_padding["enabled"]
    set_padding_tables(model, fit_padding(model, list(batches), seed))
    model.use_constant_padding(enabled)


def precompute_padding(settings: PaddingSettings) -> int:
    """
    Precomputes padding for a model and writes the result as a model folder.

    Args:
        settings (`PaddingSettings`): model, audio and output.

    Returns:
        `int`: number of parameters added to the encoder.

    Raises:
        InputError: the model, audio or output cannot be used.
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
        report["after"]["encoder_parameters"] += added
        report["after"]["total_parameters"] += added
        report["after"]["weight_bytes"] += added * stored_dtype.itemsize
    if is_main_process():
        save_model_folder(model.to(dtype=stored_dtype), files, settings.output, report)  # type: ignore[call-arg]
    return added
