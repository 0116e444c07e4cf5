"""Evaluate several models on several datasets, with one manifest per pair."""

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import AudioDataset
from ..audio.calls import holds_calls
from ..common.errors import InputError
from ..common.files import check_unchanged
from ..common.memory import PeakMemory
from ..common.processes import all_gather, is_main_process, join
from ..models.compression_json import public_name
from ..models.folders import base_model_of, check_language, encoder_parameters, fingerprint, load_model
from .decoding import GREEDY, DecodingOptions
from .evaluate import evaluate
from .manifest import manifest_path, read_settings, settings_path, write_settings
from .word_error_rate import text_normalizer

logger = logging.getLogger(__name__)

# These may differ when an interrupted evaluation is resumed.
RESUMABLE_CHANGES = ("peak_memory", "left_out", "skipped", "batch_size", "versions", "device")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    The models and datasets of an evaluation, and its options.

    Args:
        models (`Sequence[str]`): Hub ids or folders of Whispers, compressed or not.
        dataset (`Sequence[str]`): audio with transcripts: folders with `metadata.csv`, or Hub datasets.
        output (`Path`): folder of the manifests.
        text_column (`str`, *optional*): column of the transcripts, if it has an unusual name.
        decoding (`DecodingOptions`): beam search, language and task.
        normalizer (`str`): text normalizer, one of `NORMALIZERS`.
        num_clips (`int`, *optional*): number of clips from each dataset; all by default.
        batch_size (`int`): clips per batch.
        device (`str`, *optional*): device to run on; cuda if there is a GPU by default.
        dtype (`str`): data type of the computation.
    """

    models: Sequence[str]
    dataset: Sequence[str]
    output: Path = Path("results")
    text_column: str | None = None
    decoding: DecodingOptions = GREEDY
    normalizer: str = "english"
    num_clips: int | None = None
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"

    @property
    def names(self) -> list[str]:
        """Names of the models in manifests and reports."""
        return [public_name(model) for model in self.models]


def evaluate_models(settings: EvaluationSettings) -> list[Path]:
    """
    Evaluates models on datasets and writes a manifest for each pair; existing manifests are resumed.

    Args:
        settings (`EvaluationSettings`): models, datasets and options.

    Returns:
        `list[Path]`: the manifests, one per model and dataset.

    Raises:
        InputError: if two models or datasets have the same name, a model or dataset cannot be used, or an existing
            manifest was written with different settings.
    """
    datasets = [public_name(source) for source in settings.dataset]
    for kind, names in (("models", settings.names), ("datasets", datasets)):
        if len(set(names)) < len(names):
            raise InputError(f"two {kind} have the name {max(names, key=names.count)}; rename one of their folders")
    if settings.num_clips and (calls := next(filter(holds_calls, settings.dataset), None)):
        raise InputError(
            f"{calls} is scored by whole calls, so all of its clips are needed; leave out the limit on clips",
            setting="num_clips",
        )
    device = join(settings.device)
    return [path for name in settings.models for path in _evaluate_model(settings, name, device)]


def _evaluate_model(settings: EvaluationSettings, name: str, device: str) -> list[Path]:
    """Evaluates one model on every dataset; returns the manifests."""
    model, processor = load_model(name)
    check_language(settings.decoding.language, model, name)
    run_settings = _model_settings(settings, model, name, device)
    model.to(device=device, dtype=getattr(torch, settings.dtype))  # type: ignore[call-arg]
    model.eval()
    return [
        _evaluate_set(settings, model, processor, source, run_settings | {"dataset": public_name(source)})
        for source in settings.dataset
    ]


def _model_settings(
    settings: EvaluationSettings, model: WhisperForConditionalGeneration, name: str, device: str
) -> dict[str, Any]:
    """
    The part of a manifest's settings that is the same for all datasets.

    When a run is resumed, all settings except `RESUMABLE_CHANGES` must be unchanged.
    """
    return {
        "model": public_name(name),
        "base_model": base_model_of(name),
        "encoder_weights": fingerprint(model),
        "encoder_parameters": encoder_parameters(model),
        "text_column": settings.text_column,
        "num_clips": settings.num_clips,
        "generation": asdict(settings.decoding),
        "normalizer": settings.normalizer,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "device": device,
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers", "jiwer")},
    }


def _evaluate_set(
    settings: EvaluationSettings,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    source: str,
    run_settings: dict[str, Any],
) -> Path:
    """Evaluates a model on one dataset, resuming an existing manifest; returns its path."""
    path = manifest_path(settings.output, run_settings["model"], run_settings["dataset"])
    clips = AudioDataset([source], text_column=settings.text_column, need_text=True)
    peak = 0
    if is_main_process():
        if path.exists():
            previous = read_settings(path)
            expected = {key: value for key, value in run_settings.items() if key not in RESUMABLE_CHANGES}
            check_unchanged(previous, expected, path, f"both it and {settings_path(path).name}")
            peak = previous.get("peak_memory") or 0
        write_settings(path, run_settings)
    # All chunks of a call share its reference, which may span an hour of speech.
    normalize = lru_cache(maxsize=16)(text_normalizer(settings.normalizer, processor.tokenizer))
    try:
        with PeakMemory(model.device) as memory:
            left_out = evaluate(
                model, processor, clips, path, normalize, settings.batch_size, settings.decoding, settings.num_clips
            )
    except BaseException:
        if is_main_process() and not path.exists():  # leave nothing behind if there is no result yet
            settings_path(path).unlink(missing_ok=True)
        raise
    if left_out:
        logger.warning("%s: left out %d clips with an empty reference", source, left_out)
    peak = max(peak, *all_gather([memory.peak]))
    if is_main_process():
        write_settings(path, run_settings | {"peak_memory": peak, "left_out": left_out, "skipped": clips.skipped})
    return path
