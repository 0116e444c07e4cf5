"""Transcribe batches of clips and measure the time of the encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import tqdm
from torch import nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from ..audio import SAMPLING_RATE, Clip
from ..audio.windows import batches_by_length
from ..common.processes import all_gather, shard
from ..common.timing import now
from ..models.fallback import computing_all_positions, needs_fallback


@dataclass
class EncoderTime:
    """
    Time spent in the encoder, as measured by `timed_encoder`.

    Args:
        seconds (`float`, *optional*, defaults to 0): total time of all forward passes.
        windows (`int`, *optional*, defaults to 0): number of windows encoded.
    """

    seconds: float = 0.0
    windows: int = 0

    @property
    def milliseconds_per_window(self) -> float:
        """Mean encoder time per window, in milliseconds."""
        return 1000 * self.seconds / self.windows


@dataclass(frozen=True)
class DecodingOptions:
    """
    Options of text generation.

    Args:
        num_beams (`int`, *optional*, defaults to 1): number of beams; 1 is greedy decoding.
        language (`str`, *optional*): code of the spoken language; detected by default.
        task (`str`, *optional*, defaults to `"transcribe"`): `"transcribe"`, or `"translate"` (into English).
    """

    num_beams: int = 1
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"


GREEDY = DecodingOptions()


@dataclass
class Transcripts:
    """
    The transcripts of a list of clips.

    Args:
        texts (`list[str]`): one transcript per clip, in the order of the clips.
        encoder_time (`EncoderTime`, *optional*): time spent in the encoder.
        fallbacks (`int`, *optional*, defaults to 0): number of clips decoded again, see `transcribe_batch`.
    """

    texts: list[str]
    encoder_time: EncoderTime = field(default_factory=EncoderTime)
    fallbacks: int = 0


@contextmanager
def timed_encoder(model: WhisperForConditionalGeneration) -> Iterator[EncoderTime]:
    """Measures every forward pass of the model's encoder within the context."""
    total, started = EncoderTime(), 0.0

    def start(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal started
        started = now(model.device)

    def stop(module: nn.Module, args: tuple[torch.Tensor, ...], output: BaseModelOutput) -> None:
        total.seconds += now(model.device) - started
        total.windows += len(output[0])

    encoder = model.get_encoder()
    hooks = [encoder.register_forward_pre_hook(start), encoder.register_forward_hook(stop)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def transcribe_batch(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    decoding: DecodingOptions = GREEDY,
) -> tuple[list[str], float, list[int]]:
    """
    Transcribes one batch of clips; the texts contain no timestamps.

    If a clip is longer than the model's window, the whole batch uses Whisper's sequential decoding. Otherwise, if
    constant padding was used and the output of a clip looks broken, the clip is decoded again with all positions
    computed (fallback).

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio.
        decoding (`DecodingOptions`, *optional*): greedy decoding in the detected language by default.

    Returns:
        `tuple[list[str], float, list[int]]`: the transcripts; the seconds spent in `generate()` (encoder and decoder,
        without feature extraction and tokenizer); and the indices of the clips that needed the fallback.
    """
    extractor = processor.feature_extractor
    is_long = any(len(clip.samples) > extractor.n_samples for clip in clips)
    features = extractor(
        [clip.samples for clip in clips],
        sampling_rate=SAMPLING_RATE,
        return_tensors="pt",
        return_attention_mask=True,
        **({"truncation": False, "padding": "longest"} if is_long else {}),
    ).to(model.device, model.dtype)
    # Without a task, transformers omits the task token, which multilingual models always saw in training.
    multilingual = getattr(model.generation_config, "is_multilingual", False)
    speech: dict[str, Any] = {"task": decoding.task, "language": decoding.language} if multilingual else {}

    def decode(indices: slice | list[int]) -> tuple[list[str], float]:
        start = now(model.device)
        tokens = model.generate(
            **{name: tensor[indices] for name, tensor in features.items()},
            **speech,
            num_beams=decoding.num_beams,
            do_sample=False,
            return_timestamps=is_long,
        )
        seconds = now(model.device) - start
        return processor.batch_decode(tokens, skip_special_tokens=True), seconds

    texts, seconds = decode(slice(None))
    fallback = [] if is_long else needs_fallback(model, processor.tokenizer, texts)
    if fallback:
        with computing_all_positions(model):
            fallback_texts, fallback_seconds = decode(fallback)
        seconds += fallback_seconds
        for index, text in zip(fallback, fallback_texts, strict=True):
            texts[index] = text
    return texts, seconds, fallback


@torch.no_grad()
def warm_up(model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor) -> None:
    """Encodes one window of silence, since the first forward pass is slower."""
    shape = (1, extractor.feature_size, extractor.nb_max_frames)
    model.get_encoder()(torch.zeros(shape, device=model.device, dtype=model.dtype))


def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    batch_size: int = 8,
    decoding: DecodingOptions = GREEDY,
) -> Transcripts:
    """
    Transcribes clips of any length; several processes share the batches. The texts contain no timestamps.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio.
        batch_size (`int`): clips per batch.
        decoding (`DecodingOptions`, *optional*): greedy decoding in the detected language by default.

    Returns:
        `Transcripts`: the texts, the encoder time and the number of fallbacks, summed over all processes.
    """
    texts = [""] * len(clips)
    warm_up(model, processor.feature_extractor)
    transcribed: list[tuple[int, str]] = []
    fallbacks = 0
    batches = list(shard(batches_by_length(clips, processor.feature_extractor, batch_size)))
    with timed_encoder(model) as encoder_time:
        for indices in tqdm(batches, "transcription", unit="batch"):
            batch, _, fallback = transcribe_batch(model, processor, [clips[index] for index in indices], decoding)
            transcribed += zip(indices, batch, strict=True)
            fallbacks += len(fallback)
    for index, text in all_gather(transcribed):
        texts[index] = text
    times = all_gather([encoder_time])
    total = EncoderTime(sum(t.seconds for t in times), sum(t.windows for t in times))
    return Transcripts(texts, total, sum(all_gather([fallbacks])))
