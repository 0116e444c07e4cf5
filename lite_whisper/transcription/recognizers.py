"""Loads the engine that recognises speech: the transformers pipeline, or CTranslate2 for the decoder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from ..audio import SAMPLING_RATE, Clip
from ..common.errors import InputError
from ..modeling_lite_whisper import LiteWhisperEncoder, LiteWhisperForConditionalGeneration
from ..models.layers import as_lite_whisper

Backend = Literal["transformers", "ctranslate2", "auto"]


class Recognizer(Protocol):
    """The part of the interface of transformers' `AutomaticSpeechRecognitionPipeline` that is used here."""

    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: WhisperFeatureExtractor

    def __call__(
        self,
        inputs: Sequence[dict[str, Any]],
        *,
        batch_size: int,
        return_timestamps: bool | str,
        generate_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Returns the result of each input."""


@dataclass(frozen=True)
class ComputeSettings:
    """
    Backend, dtype, device and batch size to run a model with.

    Args:
        backend (`str`): `"transformers"`; `"ctranslate2"`, which runs the decoder; or `"auto"`, the faster of the two.
        dtype (`str`): `"float32"`, `"float16"`, `"bfloat16"`, or `"int8"` for float32 models on the CPU.
        device (`str`): the device to run on.
        batch_size (`int`): windows per batch.
    """

    backend: Backend
    dtype: str
    device: str
    batch_size: int


def load_recognizer(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    compute: ComputeSettings,
    read_first: Callable[[], Clip | None],
    options: dict[str, Any],
) -> tuple[Recognizer, str]:
    """
    Prepares a model for speech recognition.

    Args:
        model (`WhisperForConditionalGeneration`): on the CPU; modified in place.
        processor (`WhisperProcessor`): the model's processor.
        compute (`ComputeSettings`): backend, dtype, device and batch size.
        read_first (`Callable`): reads the clip on which `"auto"` compares the backends.
        options (`dict`): for calling the recognizer, from `pipeline_options`.

    Returns:
        `tuple[Recognizer, str]`: the recognizer and, with `"auto"`, the reason for the choice of backend.

    Raises:
        InputError: CTranslate2 is not installed, or the model does not support the dtype.
    """
    int8 = compute.dtype == "int8"
    model.to(device=compute.device, dtype=torch.float32 if int8 else getattr(torch, compute.dtype))  # type: ignore[call-arg]
    model.eval()
    if int8 and not isinstance(model, LiteWhisperForConditionalGeneration):
        model.model.encoder = as_lite_whisper(model.model.encoder)
    encoder = model.get_encoder()
    if isinstance(encoder, LiteWhisperEncoder):
        try:
            encoder.optimize_for_inference(batch_size=compute.batch_size, dtype="int8" if int8 else None)
        except ValueError as error:
            raise InputError(str(error), setting="dtype") from error
    if compute.backend == "ctranslate2":
        return _load_ctranslate2(model, processor, compute), ""
    pipeline = AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    recognizer = cast(Recognizer, pipeline)
    clip = read_first() if compute.backend == "auto" else None
    if clip is None:
        return recognizer, ""
    try:
        alternative = _load_ctranslate2(model, processor, compute)
    except InputError as error:
        return recognizer, f"transformers: {error}"
    return _pick_faster(recognizer, alternative, clip, options)


def _load_ctranslate2(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, compute: ComputeSettings
) -> Recognizer:
    from ..export.faster_whisper_folder import CTRANSLATE2_DTYPES  # only needed for this backend

    if compute.dtype not in CTRANSLATE2_DTYPES or (compute.dtype == "float16" and compute.device == "cpu"):
        raise InputError(
            f"CTranslate2 does not support {compute.dtype} on {compute.device}; choose another dtype or backend",
            setting="dtype",
        )
    try:
        from ..integrations.ctranslate2_recognizer import CTranslate2Recognizer
    except ImportError as error:
        raise InputError(
            f"CTranslate2 is not installed ({error}); install it with pip install 'lite-whisper[faster-whisper]'",
            setting="backend",
        ) from error
    return CTranslate2Recognizer(model, processor, compute.dtype)


def _pick_faster(
    transformers: Recognizer, ctranslate2: Recognizer, clip: Clip, options: dict[str, Any]
) -> tuple[Recognizer, str]:
    """Picks the backend that is faster on a clip after a warm-up, and explains why; the text must stay the same."""
    seconds, texts = [], []
    for recognizer in (transformers, ctranslate2):
        for _ in range(2):  # the first call is a warm-up
            start = time.perf_counter()
            inputs = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE}]
            texts.append(recognizer(inputs, batch_size=1, **options)[0]["text"].strip())
        seconds.append(time.perf_counter() - start)
    measured = f"transformers took {seconds[0]:.2f} s for the first recording, ctranslate2 {seconds[1]:.2f} s"
    if texts[1] != texts[3]:
        return transformers, f"transformers: {measured}, but its text differs"
    if seconds[1] < seconds[0]:
        return ctranslate2, f"ctranslate2: {measured}"
    return transformers, f"transformers: {measured}"
