"""Calibration: what a recipe needs to know of a model's encoder, from audio or from the file that keeps it."""

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
from ..common.files import check_output_file, check_same
from ..common.processes import broadcast, is_main_process, num_processes, shard
from ..common.tensor_files import Checkpoint
from ..common.timing import now
from ..lowrank.moments import EncoderMoments, collect_moments
from ..lowrank.sensitivity import Sensitivities, collect_sensitivities
from ..lowrank.storage import load_calibration, save_calibration
from .settings import ConversionSettings

logger = logging.getLogger(__name__)

FORWARD_PASSES = 7.5  # of the encoder take as long as both passes of the default recipe over a window, on whisper-base
WORTH_SAYING = 60.0  # seconds


@dataclass(frozen=True)
class Calibration:
    """
    What calibration found, and in which audio.

    Args:
        moments (`EncoderMoments`): of the encoder's activations.
        origin (`dict`): from what they were computed.
        sensitivities (`Sensitivities`, *optional*): of the loss; the published recipe needs none.
        batches (`list[torch.Tensor]`):
            The log-mel features, where they had to be read for the default recipe, each of shape
            `(batch, mel bins, mel frames)`; of several processes each has its shard.
    """

    moments: EncoderMoments
    origin: dict[str, Any]
    sensitivities: Sensitivities | None = None
    batches: tuple[torch.Tensor, ...] = ()


def calibration_settings(settings: ConversionSettings, weights: str) -> dict[str, Any]:
    """What decides the outcome of a calibration: the encoder, by its fingerprint, and the settings."""
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
    What the recipe needs to know of the encoder; what is kept in a file is not computed again.

    Args:
        settings (`ConversionSettings`): which recipe, audio and file.
        model (`WhisperForConditionalGeneration`): on the device and in the dtype to compute in.
        extractor (`WhisperFeatureExtractor`): the model's own.
        weights (`str`): the fingerprint of the encoder as it is stored.
        work (`Path`): a folder for what an interrupted calibration goes on from.

    Raises:
        InputError: the audio or the file cannot be used, or the file was made from something else.
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
    """The published recipe: moments alone, from a stream of the audio."""
    kept = _load(settings.calibration_file, wanted)
    if kept:
        return replace(kept, sensitivities=None)
    audio, features = calibration_windows(settings, extractor)
    windows = math.ceil(settings.num_windows / num_processes())
    moments = collect_moments(model, features, windows, _checkpoint(settings, work, "moments", wanted))
    found = Calibration(moments, _origin(wanted, moments, audio))
    if settings.calibration_file and is_main_process():
        save_calibration(found.moments, settings.calibration_file, found.origin)
    return found


def _calibrate_loss_aware(
    settings: ConversionSettings,
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    wanted: dict[str, Any],
    work: Path,
) -> Calibration:
    """The default recipe: moments and sensitivities; the padding may be learnt from the same features."""
    path = settings.calibration_file or work / "moments.safetensors"
    kept = _load(path, wanted)
    if kept and kept.sensitivities:
        return kept
    audio, features = calibration_windows(settings, extractor)
    batches = tuple(features)
    windows = sum(map(len, batches))
    _announce(model, batches, windows)
    if kept is None:
        moments = collect_moments(model, batches, windows, _checkpoint(settings, work, "moments", wanted))
        kept = _in_file(Calibration(moments, _origin(wanted, moments, audio)), path)
        del moments
    if kept.sensitivities is None:
        checkpoint = _checkpoint(settings, work, "sensitivities", wanted)
        sensitivities = collect_sensitivities(model, batches, settings.seed, windows, checkpoint=checkpoint)
        kept = _in_file(replace(kept, sensitivities=sensitivities), path)
        del sensitivities
    return replace(kept, batches=batches)


def _in_file(found: Calibration, path: Path) -> Calibration:
    """Writes what was found, and returns it mapped into memory from there: it takes room only while it is used."""
    if is_main_process():
        save_calibration(found.moments, path, found.origin, found.sensitivities)
    PartialState().wait_for_everyone()
    moments, sensitivities, _ = load_calibration(path)
    return replace(found, moments=moments, sensitivities=sensitivities)


@torch.no_grad()
def _announce(model: WhisperForConditionalGeneration, batches: Sequence[torch.Tensor], windows: int) -> None:
    """Says how long the default recipe will calibrate, unless that is soon over; measured on the first batch."""
    if not windows:
        return
    encoder, features = model.get_encoder(), batches[0].to(model.device, model.dtype)
    encoder(features[:1])  # which prepares the device
    start = now(model.device)
    encoder(features)
    seconds = FORWARD_PASSES * windows / len(features) * (now(model.device) - start)
    if seconds > WORTH_SAYING and is_main_process():
        tqdm.write(f"calibration takes about {seconds / 60:.0f} minutes", file=sys.stderr)


def _load(path: Path | None, wanted: dict[str, Any]) -> Calibration | None:
    """What the file keeps, where there is one; it must have been made as is wanted, in whichever audio if unnamed."""
    if path is None:
        return None
    check_output_file(path, "calibration_file")
    if not broadcast(path.exists()):
        return None
    moments, sensitivities, origin = load_calibration(path)
    unnamed = wanted["datasets"] is None
    check_same(origin, {"encoder_weights": wanted["encoder_weights"]} if unnamed else wanted, path)
    return Calibration(moments, origin, sensitivities)


def calibration_windows(
    settings: ConversionSettings, extractor: WhisperFeatureExtractor
) -> tuple[AudioDataset, Iterator[torch.Tensor]]:
    """The calibration audio, and this process's shard of its log-mel features, batch by batch."""
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
