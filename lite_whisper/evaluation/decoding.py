"""Clips in, transcripts and encoder time out."""

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
    What `timed_encoder` measured.

    Args:
        seconds (`float`, *optional*, defaults to 0): in the encoder, all passes together.
        windows (`int`, *optional*, defaults to 0): of audio that went through it.
    """

    seconds: float = 0.0
    windows: int = 0

    @property
    def milliseconds_per_window(self) -> float:
        """Mean time of the encoder for one window of audio."""
        return 1000 * self.seconds / self.windows


@dataclass(frozen=True)
class DecodingOptions:
    """
    How text is generated.

    Args:
        num_beams (`int`, *optional*, defaults to 1): of beam search; 1 is greedy.
        language (`str`, *optional*): that is spoken; detected where none is given.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`, into English.
    """

    num_beams: int = 1
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"


GREEDY = DecodingOptions()


@dataclass
class Transcripts:
    """
    What a model heard in clips.

    Args:
        texts (`list[str]`): of each clip, in the order of the clips.
        encoder_time (`EncoderTime`, *optional*): that it took.
        retried (`int`, *optional*, defaults to 0): how many clips needed a second try, see `transcribe_batch`.
    """

    texts: list[str]
    encoder_time: EncoderTime = field(default_factory=EncoderTime)
    fallbacks: int = 0


@contextmanager
def timed_encoder(model: WhisperForConditionalGeneration) -> Iterator[EncoderTime]:
    """Measures every pass through the model's encoder while the context lasts."""
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
    Transcribes the clips of one batch, without timestamps in the text.

    Clips that are longer than the model's window, and whatever is with them, go through Whisper's own sequential
    long-form decoding. What looks broken where padding was taken for constant is decoded once more without.

    Returns:
        `tuple[list[str], float, list[int]]`: the texts, the seconds that `generate()` took (encoder and decoder,
        without log-mel features and tokenizer), and the places of the clips that were decoded twice.
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
    # Without a task transformers leaves the task token out, which multilingual models were not trained for.
    multilingual = getattr(model.generation_config, "is_multilingual", False)
    speech: dict[str, Any] = {"task": decoding.task, "language": decoding.language} if multilingual else {}

    def decoded(places: slice | list[int]) -> tuple[list[str], float]:
        start = now(model.device)
        tokens = model.generate(
            **{name: tensor[places] for name, tensor in features.items()},
            **speech,
            num_beams=decoding.num_beams,
            do_sample=False,
            return_timestamps=is_long,
        )
        seconds = now(model.device) - start
        return processor.batch_decode(tokens, skip_special_tokens=True), seconds

    texts, seconds = decoded(slice(None))
    fallback = [] if is_long else needs_fallback(model, processor.tokenizer, texts)
    if fallback:
        with computing_all_positions(model):
            again, more = decoded(fallback)
        seconds += more
        for place, text in zip(fallback, again, strict=True):
            texts[place] = text
    return texts, seconds, fallback


@torch.no_grad()
def warm_up(model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor) -> None:
    """Runs one window of silence through the encoder, whose first pass takes longer."""
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
    Transcribes clips of any length, without timestamps in the text; several processes share the batches.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio.
        batch_size (`int`): clips per batch.
        decoding (`DecodingOptions`, *optional*): greedy, in the language that the model detects, by default.
    """
    texts = [""] * len(clips)
    warm_up(model, processor.feature_extractor)
    found: list[tuple[int, str]] = []
    twice = 0
    mine = list(shard(batches_by_length(clips, processor.feature_extractor, batch_size)))
    with timed_encoder(model) as encoder_time:
        for indices in tqdm(mine, "transcription", unit="batch"):
            batch, _, fallback = transcribe_batch(model, processor, [clips[index] for index in indices], decoding)
            found += zip(indices, batch, strict=True)
            twice += len(fallback)
    for index, text in all_gather(found):
        texts[index] = text
    times = all_gather([encoder_time])
    total = EncoderTime(sum(t.seconds for t in times), sum(t.windows for t in times))
    return Transcripts(texts, total, sum(all_gather([twice])))
