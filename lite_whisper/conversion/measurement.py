"""Measures sizes, word error rate and encoder time of a model before and after a conversion."""

from collections.abc import Sequence

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import AudioDataset, Clip
from ..audio.calls import holds_calls
from ..common.errors import InputError
from ..evaluation.decoding import transcribe
from ..evaluation.word_error_rate import text_normalizer, word_error_rate
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.folders import encoder_parameters
from .settings import ConversionSettings

Figures = dict[str, float]
"""encoder_parameters, total_parameters, weight_bytes; if clips were transcribed, also word_error_rate (per cent) and
encoder_milliseconds (per window)."""


def clips_to_transcribe(settings: ConversionSettings) -> list[Clip]:
    """
    Loads the clips of the evaluation datasets.

    Raises:
        InputError: a clip has no transcript, or a dataset is scored by whole calls.
    """
    if calls := next(filter(holds_calls, settings.evaluate), None):
        raise InputError(f"{calls} is scored by whole calls; use lite-whisper evaluate", setting="evaluate")
    clips = list(AudioDataset(settings.evaluate)) if settings.evaluate else []
    if not all(clip.text for clip in clips):
        raise InputError(
            "the evaluation requires transcripts: give a folder with metadata.csv, or a dataset with a text column",
            setting="evaluate",
        )
    return clips


def measure(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    settings: ConversionSettings,
    stored_dtype: torch.dtype,
) -> Figures:
    """
    Measures a model; compressed models run with optimised inference.

    Args:
        model (`WhisperForConditionalGeneration`): a base or compressed model.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio with transcripts; if empty, only sizes are reported.
        settings (`ConversionSettings`): batch size and normalizer.
        stored_dtype (`torch.dtype`): data type of the weights on disk.
    """
    figures: Figures = {
        "encoder_parameters": encoder_parameters(model),
        "total_parameters": model.num_parameters(),
        "weight_bytes": model.num_parameters() * stored_dtype.itemsize,
    }
    if clips:
        if isinstance(model, LiteWhisperForConditionalGeneration):
            model.optimize_for_inference(batch_size=settings.batch_size)
        transcripts = transcribe(model, processor, clips, settings.batch_size)
        if isinstance(model, LiteWhisperForConditionalGeneration):
            model.optimize_for_inference(False)
        normalize = text_normalizer(settings.normalizer, processor.tokenizer)
        figures["word_error_rate"] = word_error_rate([clip.text or "" for clip in clips], transcripts.texts, normalize)
        figures["encoder_milliseconds"] = transcripts.encoder_time.milliseconds_per_window
    return figures
