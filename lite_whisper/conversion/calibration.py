"""Calibration: collects statistics of an encoder from audio, or loads them from a file."""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from ..audio import AudioDataset, feature_batches
from ..common.files import check_output_file, check_unchanged
from ..common.processes import broadcast, is_main_process, num_processes, shard
from ..common.tensor_files import Checkpoint
from ..common.timing import now
from ..lowrank.moments import EncoderMoments, collect_moments
from ..lowrank.sensitivity import Sensitivities, collect_sensitivities
from ..lowrank.storage import load_calibration, save_calibration
from .settings import ConversionSettings

logger = logging.getLogger(__name__)

FORWARD_PASSES = 7.5  # cost of the default recipe per window, in forward passes of the encoder (whisper-base)
MIN_ANNOUNCED_SECONDS = 60.0


@dataclass(frozen=True)
class Calibration:
    """
    Calibration statistics of an encoder.

    Args:
        moments (`EncoderMoments`): moments of the encoder's activations.
        origin (`dict`): the settings and audio from which the statistics were computed.
        sensitivities (`Sensitivities`, *optional*): sensitivities of the loss; not used by the published recipe.
        batches (`tuple[torch.Tensor, ...]`):
            The log-mel features, each of shape `(batch, mel bins, mel frames)`, if the default recipe read them; only
            this process's shard.
    """

    moments: EncoderMoments
    origin: dict[str, Any]
    sensitivities: Sensitivities | None = None
    batches: tuple[torch.Tensor, ...] = ()


def calibration_settings(settings: ConversionSettings, weights: str) -> dict[str, Any]:
    """The settings that determine the outcome of a calibration, with the encoder's fingerprint."""
    return {
        "encoder_weights": weights,
        "datasets": None if settings.dataset is None else list(settings.dataset),
        "num_windows": settings.num_windows,
        "noise": list(settings.noise or ()),
        "seed": settings.seed,
        "dtype": settings.dtype,
    }


def calibrate(
    settings: ConversionSettings,
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    weights: str,
    work: Path,
) -> Calibration:
    """
    Collects the statistics that the recipe needs. Statistics found in the calibration file are reused.

    Args:
        settings (`ConversionSettings`): recipe, audio and calibration file.
        model (`WhisperForConditionalGeneration`): the base model, on the device and in the dtype to compute in.
        extractor (`WhisperFeatureExtractor`): feature extractor of the model.
        weights (`str`): fingerprint of the encoder as stored.
        work (`Path`): folder for checkpoints, from which an interrupted calibration resumes.

    Raises:
        InputError: the audio or the file cannot be used, or the file was made with other settings.
    """
    recipe = _calibrate_liteasr if settings.recipe == "liteasr" else _calibrate_loss_aware
    return recipe(settings, model, extractor, calibration_settings(settings, weights), work)


def _calibrate_liteasr(
    settings: ConversionSettings,
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    wanted: dict[str, Any],
    work: Path,
) -> Calibration:
    """Published recipe: moments only, from streamed audio."""
    if loaded := _load(settings.calibration_file, wanted):
        return replace(loaded, sensitivities=None)
    audio, features = calibration_windows(settings, extractor)
    windows = math.ceil(settings.num_windows / num_processes())
    moments = collect_moments(model, features, windows, _checkpoint(settings, work, "moments", wanted))
    calibration = Calibration(moments, _origin(wanted, moments, audio))
    if settings.calibration_file and is_main_process():
        save_calibration(calibration.moments, settings.calibration_file, calibration.origin)
    return calibration


def _calibrate_loss_aware(
    settings: ConversionSettings,
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    wanted: dict[str, Any],
    work: Path,
) -> Calibration:
    """Default recipe: moments and sensitivities; the features are kept because padding may be precomputed from them."""
    path = settings.calibration_file or work / "moments.safetensors"
    calibration = _load(path, wanted)
    if calibration and calibration.sensitivities:
        return calibration
    audio, features = calibration_windows(settings, extractor)
    batches = tuple(features)
    windows = sum(map(len, batches))
    _announce_duration(model, batches, windows)
    if calibration is None:
        moments = collect_moments(model, batches, windows, _checkpoint(settings, work, "moments", wanted))
        calibration = _save_and_map(Calibration(moments, _origin(wanted, moments, audio)), path)
        del moments
    if calibration.sensitivities is None:
        checkpoint = _checkpoint(settings, work, "sensitivities", wanted)
        sensitivities = collect_sensitivities(model, batches, settings.seed, windows, checkpoint=checkpoint)
        calibration = _save_and_map(replace(calibration, sensitivities=sensitivities), path)
        del sensitivities
    return replace(calibration, batches=batches)


def _save_and_map(calibration: Calibration, path: Path) -> Calibration:
    """Saves statistics and returns them memory-mapped from the file, so that only the parts in use occupy memory."""
    if is_main_process():
        save_calibration(calibration.moments, path, calibration.origin, calibration.sensitivities)
    PartialState().wait_for_everyone()
    moments, sensitivities, _ = load_calibration(path)
    return replace(calibration, moments=moments, sensitivities=sensitivities)


@torch.no_grad()
def _announce_duration(model: WhisperForConditionalGeneration, batches: Sequence[torch.Tensor], windows: int) -> None:
    """Prints the expected duration of the default recipe if it is long, measured on the first batch."""
    if not windows:
        return
    encoder, features = model.get_encoder(), batches[0].to(model.device, model.dtype)
    encoder(features[:1])  # warm-up
    start = now(model.device)
    encoder(features)
    seconds = FORWARD_PASSES * windows / len(features) * (now(model.device) - start)
    if seconds > MIN_ANNOUNCED_SECONDS and is_main_process():
        tqdm.write(f"calibration takes about {seconds / 60:.0f} minutes", file=sys.stderr)


def _load(path: Path | None, wanted: dict[str, Any]) -> Calibration | None:
    """Loads the calibration file if it exists; its settings must match, except that no datasets match any datasets."""
    if path is None:
        return None
    check_output_file(path, "calibration_file")
    if not broadcast(path.exists()):
        return None
    moments, sensitivities, origin = load_calibration(path)
    any_audio = wanted["datasets"] is None
    check_unchanged(origin, {"encoder_weights": wanted["encoder_weights"]} if any_audio else wanted, path)
    return Calibration(moments, origin, sensitivities)


def calibration_windows(
    settings: ConversionSettings, extractor: WhisperFeatureExtractor
) -> tuple[AudioDataset, Iterator[torch.Tensor]]:
    """The calibration audio, and an iterator over this process's batches of its log-mel features."""
    assert settings.dataset is not None and settings.noise is not None
    audio = AudioDataset(settings.dataset, seed=settings.seed)
    size, count = settings.batch_size, settings.num_windows
    return audio, shard(feature_batches(audio, extractor, count, size, settings.noise, settings.seed))


def _checkpoint(settings: ConversionSettings, work: Path, name: str, wanted: dict[str, Any]) -> Checkpoint:
    return Checkpoint(work / f"part_of_{name}", wanted | {"batch_size": settings.batch_size})


def _origin(wanted: dict[str, Any], moments: EncoderMoments, audio: AudioDataset) -> dict[str, Any]:
    if audio.skipped:
        logger.warning("skipped %d clips that could not be read", len(audio.skipped))
    return {**wanted, "frames": moments[0]["q_proj"].count, "skipped": audio.skipped}
