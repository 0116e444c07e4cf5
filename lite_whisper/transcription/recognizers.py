"""What recognises speech in `transcribe`: transformers, or CTranslate2 for the decoder."""

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
    """The pipeline of transformers for speech recognition, as far as it is used; see its documentation."""

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
        """The result of each input."""


@dataclass(frozen=True)
class Computing:
    """
    How a model is to compute.

    Args:
        backend (`str`): `"transformers"`; `"ctranslate2"`, which computes the decoder; or `"auto"`, the faster of
            the two.
        dtype (`str`): `"float32"`, `"float16"`, `"bfloat16"`, or `"int8"` for the products of fp32 models on the CPU.
        device (`str`): to run on.
        batch_size (`int`): windows that run at once.
    """

    backend: Backend
    dtype: str
    device: str
    batch_size: int


def load_recognizer(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    computing: Computing,
    first: Callable[[], Clip | None],
    options: dict[str, Any],
) -> tuple[Recognizer, str]:
    """
    Makes a model ready to recognise speech.

    Args:
        model (`WhisperForConditionalGeneration`): on the CPU; it is changed.
        processor (`WhisperProcessor`): its own.
        computing (`Computing`): how.
        first (`Callable`): reads the clip by which the faster backend is found.
        options (`dict`): of the calls of the recognizer.

    Returns:
        `tuple[Recognizer, str]`: the recognizer and, where there was a choice, what was measured.

    Raises:
        InputError: CTranslate2 is not installed, or the model cannot compute like that.
    """
    int8 = computing.dtype == "int8"
    model.to(device=computing.device, dtype=torch.float32 if int8 else getattr(torch, computing.dtype))  # type: ignore[call-arg]
    model.eval()
    if int8 and not isinstance(model, LiteWhisperForConditionalGeneration):
        model.model.encoder = as_lite_whisper(model.model.encoder)
    encoder = model.get_encoder()
    if isinstance(encoder, LiteWhisperEncoder):
        try:
            encoder.optimize_for_inference(batch_size=computing.batch_size, dtype="int8" if int8 else None)
        except ValueError as error:
            raise InputError(str(error), setting="dtype") from error
    if computing.backend == "ctranslate2":
        return _ctranslate2(model, processor, computing), ""
    pipeline = AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    recognizer = cast(Recognizer, pipeline)
    clip = first() if computing.backend == "auto" else None
    if clip is None:
        return recognizer, ""
    try:
        other = _ctranslate2(model, processor, computing)
    except InputError as error:
        return recognizer, f"transformers: {error}"
    return _faster(recognizer, other, clip, options)


def _ctranslate2(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, computing: Computing
) -> Recognizer:
    from ..export.faster_whisper_folder import QUANTIZATION  # for this backend alone

    precision = {name: precision for precision, name in QUANTIZATION.items()}.get(computing.dtype)
    if precision is None or (precision == "fp16" and computing.device == "cpu"):
        raise InputError(f"CTranslate2 does not compute in {computing.dtype} on {computing.device}", setting="dtype")
    try:
        from ..integrations.ctranslate2_recognizer import CTranslate2Recognizer
    except ImportError as error:
        raise InputError(
            f"CTranslate2 is not installed ({error}); pip install 'lite-whisper[faster-whisper]'", setting="backend"
        ) from error
    return CTranslate2Recognizer(model, processor, precision)


def _faster(stock: Recognizer, other: Recognizer, clip: Clip, options: dict[str, Any]) -> tuple[Recognizer, str]:
    """Which of the two takes less for a clip, the second time; and why. What writes another text is not taken."""
    seconds, texts = [], []
    for recognizer in (stock, other):
        for _ in range(2):  # the first call of each is slower than those that follow
            start = time.perf_counter()
            inputs = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE}]
            texts.append(recognizer(inputs, batch_size=1, **options)[0]["text"].strip())
        seconds.append(time.perf_counter() - start)
    measured = f"transformers took {seconds[0]:.2f} s for the first recording, ctranslate2 {seconds[1]:.2f} s"
    if texts[1] != texts[3]:
        return stock, f"transformers: {measured}, but wrote another text"
    if seconds[1] < seconds[0]:
        return other, f"ctranslate2: {measured}"
    return stock, f"transformers: {measured}"
