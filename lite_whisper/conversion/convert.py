"""Converts a Whisper: calibrate, compress, recover, precompute padding, measure and save."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import AudioDataset
from ..common.files import check_output, working_folder
from ..common.processes import is_main_process, join
from ..lowrank.time_cost import load_time_table
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.compression_json import public_name
from ..models.folders import fingerprint, load_base_model, load_processor
from ..training.recovery import Recovery, recover
from .calibration import Calibration, calibrate, calibration_windows
from .measurement import Figures, clips_to_transcribe, measure
from .padding import update_padding
from .recipes import RecipeReport, check_feasible, compress_liteasr, compress_loss_aware
from .saving import base_card, save_model_folder
from .settings import ConversionSettings


@dataclass(frozen=True)
class Conversion:
    """
    Result of a conversion.

    Args:
        folder (`Path`): the model folder.
        before (`Figures`): sizes of the base model and, if evaluated, its word error rate and encoder time.
        after (`Figures`): the same figures of the compressed model.
        report (`dict`): the contents of `compression.json`.
    """

    folder: Path
    before: Figures
    after: Figures
    report: dict[str, Any]


@dataclass(frozen=True)
class CalibratedModel:
    """
    A base model with its calibration statistics.

    Args:
        model (`WhisperForConditionalGeneration`): the model, on the device to compute on.
        processor (`WhisperProcessor`): its processor.
        folder (`Path`): folder that holds its files.
        dtype (`torch.dtype`): data type of its stored weights.
        calibration (`Calibration`): its calibration statistics.
    """

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    folder: Path
    dtype: torch.dtype
    calibration: Calibration


def convert(settings: ConversionSettings) -> Conversion:
    """
    Compresses the encoder of a Whisper and writes a complete model folder.

    An interrupted conversion resumes when called again with the same settings; intermediate results are stored in a
    `.unfinished` folder next to the output until then. Processes started by `accelerate launch` share the work, and the
    main process writes the result.

    Args:
        settings (`ConversionSettings`): settings of the conversion.

    Raises:
        InputError: the model, audio or output cannot be used, or the size cannot be reached.
    """
    if settings.profile:
        load_time_table(settings.profile)  # report a damaged profile before the calibration
    check_output(settings.output, settings.base_model, settings.overwrite)
    device = join(settings.device)
    clips = clips_to_transcribe(settings)
    with working_folder(settings.output, is_main_process()) as work:
        base = load_and_calibrate(settings, device, work)
        if settings.recipe == "liteasr":
            lite, recipe_report = compress_liteasr(settings, base.model, base.calibration)
        else:
            lite, recipe_report = compress_loss_aware(settings, base.model, base.calibration)
        if settings.recover and any(lite.config.low_rank_config or []):
            recipe_report["recovery"] = _recover_factors(settings, lite, base, recipe_report, work / "recovery")
            base.model.to(device)  # type: ignore[arg-type]
        if settings.constant_padding:
            # The published recipe streams its windows, and a calibration file replaces reading them.
            windows = base.calibration.batches or calibration_windows(settings, base.processor.feature_extractor)[1]
            update_padding(lite.float(), windows, settings.seed)
        before, after = (measure(model, base.processor, clips, settings, base.dtype) for model in (base.model, lite))
        report = _report(settings, lite, base, recipe_report) | {
            "before": before,
            "after": after,
            "versions": _versions(),
        }
        if is_main_process():
            save_model_folder(lite.to(dtype=base.dtype), base.folder, settings.output, report)  # type: ignore[call-arg]
    return Conversion(settings.output, before, after, report)


def load_and_calibrate(
    settings: ConversionSettings, device: str, work: Path, ratios: Sequence[float] = ()
) -> CalibratedModel:
    """
    Loads and calibrates a base model.

    Args:
        settings (`ConversionSettings`): settings of the conversion.
        device (`str`): device to compute on.
        work (`Path`): folder for checkpoints, from which an interrupted calibration resumes.
        ratios (`Sequence[float]`, *optional*): sizes to check for feasibility instead of the size in the settings.

    Raises:
        InputError: the model or audio cannot be used, or a size cannot be reached.
    """
    model, folder = load_base_model(settings.base_model)
    check_feasible(settings, model, ratios)
    processor = load_processor(folder)
    weights, stored_dtype = fingerprint(model), model.dtype
    model.to(device=device, dtype=getattr(torch, settings.dtype))  # type: ignore[call-arg]
    calibration = calibrate(settings, model, processor.feature_extractor, weights, work)
    if torch.promote_types(model.dtype, stored_dtype) != model.dtype:
        # Calibration tolerates a lower precision than the stored weights; the result does not.
        del model
        model = load_base_model(settings.base_model)[0].to(device)  # type: ignore[arg-type]
    return CalibratedModel(model, processor, folder, stored_dtype, calibration)


def _recover_factors(
    settings: ConversionSettings,
    lite: LiteWhisperForConditionalGeneration,
    base: CalibratedModel,
    recipe_report: RecipeReport,
    folder: Path,
) -> dict[str, Any]:
    """Trains the factors in place and returns the `recovery` entry of the report."""
    assert settings.dataset is not None and settings.recover is not None and settings.noise is not None
    return recover(
        lite.float(),
        base.model.float(),
        base.processor.feature_extractor,
        AudioDataset(settings.dataset, seed=settings.seed),
        settings.num_windows,
        folder,
        Recovery(minutes=settings.recover, noise=settings.noise, seed=settings.seed),
        {"recipe": recipe_report["recipe"], "calibration": recipe_report["calibration"]},
    )


def _report(
    settings: ConversionSettings,
    lite: LiteWhisperForConditionalGeneration,
    base: CalibratedModel,
    recipe_report: RecipeReport,
) -> dict[str, Any]:
    origin = recipe_report["calibration"]
    frames = base.calibration.moments[0]["q_proj"].count
    return {
        "base_model": public_name(settings.base_model),
        "base_card": base_card(base.folder),
        **recipe_report,
        "calibration": {
            **origin,
            "datasets": [public_name(source) for source in origin["datasets"]],
            "windows": frames // lite.config.max_source_positions,  # fewer than num_windows if the audio is short
        },
        "low_rank_config": lite.config.low_rank_config,
        "constant_padding": bool(lite.config.constant_padding),
        "evaluation": {
            "datasets": [public_name(source) for source in settings.evaluate],
            "normalizer": settings.normalizer,
        },
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("lite-whisper", "torch", "transformers", "numpy")}
