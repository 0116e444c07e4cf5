"""Several models on several datasets: a manifest for each pair."""

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
from ..audio.calls import in_chunks
from ..common.errors import InputError
from ..common.files import check_same
from ..common.memory import PeakMemory
from ..common.processes import all_gather, is_main_process, join
from ..models.compression_json import public_name
from ..models.folders import base_model_of, check_language, encoder_parameters, fingerprint, load_model
from .decoding import GREEDY, DecodingOptions
from .evaluate import evaluate
from .manifest import manifest_path, read_settings, settings_path, write_settings
from .word_error_rate import text_normalizer

logger = logging.getLogger(__name__)

VARYING = ("peak_memory", "left_out", "skipped", "batch_size", "versions", "device")  # do not change a transcript


@dataclass(frozen=True)
class EvaluationSettings:
    """
    Which models are evaluated on what.

    Args:
        models (`Sequence[str]`): Hub ids or folders of Whispers, compressed or not.
        dataset (`Sequence[str]`): audio with transcripts: folders with `metadata.csv`, or Hub datasets.
        output (`Path`): the folder of the manifests.
        text_column (`str`, *optional*): of the transcripts, where it has none of the usual names.
        decoding (`DecodingOptions`): how text is generated.
        normalizer (`str`): of the texts, one of `NORMALIZERS`.
        num_clips (`int`, *optional*): clips of each set; all by default.
        batch_size (`int`): clips that run at once.
        device (`str`, *optional*): to run on; cuda where there is a GPU by default.
        dtype (`str`): to compute in.
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
        """What the models are called in manifests and reports."""
        return [public_name(model) for model in self.models]


def evaluate_models(settings: EvaluationSettings) -> list[Path]:
    """
    Evaluates models on datasets; an interrupted evaluation goes on with the manifests that are there.

    Args:
        settings (`EvaluationSettings`): which, and how.

    Returns:
        The manifests, one for each model and set.

    Raises:
        InputError: two models or sets have one name, a model or set cannot be used, or a manifest was made otherwise.
    """
    sets = [public_name(source) for source in settings.dataset]
    for kind, called in (("models", settings.names), ("datasets", sets)):
        if len(set(called)) < len(called):
            raise InputError(f"two of the {kind} are called {max(called, key=called.count)}; rename the folder of one")
    if settings.num_clips and (calls := next(filter(in_chunks, settings.dataset), None)):
        raise InputError(
            f"{calls} is scored by whole calls, of which some of its clips are only a part; take all, or other sets",
            setting="num_clips",
        )
    device = join(settings.device)
    return [path for name in settings.models for path in _evaluate_model(settings, name, device)]


def _evaluate_model(settings: EvaluationSettings, name: str, device: str) -> list[Path]:
    """Evaluates one model on every set; returns the manifests."""
    model, processor = load_model(name)
    check_language(settings.decoding.language, model, name)
    made_with = _model_settings(settings, model, name, device)
    model.to(device=device, dtype=getattr(torch, settings.dtype))  # type: ignore[call-arg]
    model.eval()
    return [
        _evaluate_set(settings, model, processor, source, made_with | {"dataset": public_name(source)})
        for source in settings.dataset
    ]


def _model_settings(
    settings: EvaluationSettings, model: WhisperForConditionalGeneration, name: str, device: str
) -> dict[str, Any]:
    """
    What the manifests of a model are made with, whatever the set.

    With the set's name all of it except `VARYING` must be the same when a run goes on.
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
    made_with: dict[str, Any],
) -> Path:
    """Evaluates a model on one set, going on with the manifest where there is one; returns its path."""
    path = manifest_path(settings.output, made_with["model"], made_with["dataset"])
    clips = AudioDataset([source], text_column=settings.text_column, need_text=True)
    peak = 0
    if is_main_process():
        if path.exists():
            kept = read_settings(path)
            decisive = {key: value for key, value in made_with.items() if key not in VARYING}
            check_same(kept, decisive, path, f"both it and {settings_path(path).name}")
            peak = kept.get("peak_memory") or 0
        write_settings(path, made_with)
    # All chunks of a call have the reference of the call, which may be that of an hour.
    normalize = lru_cache(maxsize=16)(text_normalizer(settings.normalizer, processor.tokenizer))
    try:
        with PeakMemory(model.device) as memory:
            left_out = evaluate(
                model, processor, clips, path, normalize, settings.batch_size, settings.decoding, settings.num_clips
            )
    except BaseException:
        if is_main_process() and not path.exists():  # nothing is left behind before the first result
            settings_path(path).unlink(missing_ok=True)
        raise
    if left_out:
        logger.warning("%s: left out %d clips whose reference is empty", source, left_out)
    peak = max(peak, *all_gather([memory.peak]))
    if is_main_process():
        write_settings(path, made_with | {"peak_memory": peak, "left_out": left_out, "skipped": clips.skipped})
    return path
