"""Clips in, transcripts and encoder time out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from ..audio import SAMPLING_RATE, Clip


@dataclass
class EncoderTime:
    """What `timed_encoder` measured."""

    seconds: float = 0.0
    windows: int = 0

    @property
    def milliseconds_per_window(self) -> float:
        """Mean time of the encoder for one window of audio."""
        return 1000 * self.seconds / self.windows


@dataclass
class Transcripts:
    """The text of each clip, in the order of the clips, and the encoder's time."""

    texts: list[str]
    encoder_time: EncoderTime = field(default_factory=EncoderTime)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed_encoder(model: WhisperForConditionalGeneration) -> Iterator[EncoderTime]:
    """Measures every pass through the model's encoder while the context lasts."""
    total, started = EncoderTime(), 0.0

    def start(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal started
        started = _now(model.device)

    def stop(module: nn.Module, args: tuple[torch.Tensor, ...], output: BaseModelOutput) -> None:
        total.seconds += _now(model.device) - started
        total.windows += len(output[0])

    encoder = model.get_encoder()
    hooks = [encoder.register_forward_pre_hook(start), encoder.register_forward_hook(stop)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    batch_size: int = 8,
) -> Transcripts:
    """
    Transcribes clips greedily, without timestamps in the text.

    Clips that are longer than the model's window go through Whisper's own sequential long-form decoding.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio.
        batch_size (`int`): clips per batch.
    """
    extractor = processor.feature_extractor
    by_length = sorted(range(len(clips)), key=lambda index: len(clips[index].samples))
    short = [index for index in by_length if len(clips[index].samples) <= extractor.n_samples]
    long = by_length[len(short) :]
    batches = [
        (part[i : i + batch_size], part is long) for part in (short, long) for i in range(0, len(part), batch_size)
    ]
    # Without a task transformers leaves the task token out, which multilingual models were not trained for.
    task = "transcribe" if getattr(model.generation_config, "is_multilingual", False) else None
    texts = [""] * len(clips)
    warm_up = torch.zeros(1, extractor.feature_size, extractor.nb_max_frames, device=model.device, dtype=model.dtype)
    model.get_encoder()(warm_up)
    with timed_encoder(model) as encoder_time, tqdm(desc="transcription", unit="clip", total=len(clips)) as progress:
        for indices, is_long in batches:
            features = extractor(
                [clips[index].samples for index in indices],
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
                return_attention_mask=True,
                **({"truncation": False, "padding": "longest"} if is_long else {}),
            ).to(model.device, model.dtype)
            tokens = model.generate(**features, num_beams=1, do_sample=False, return_timestamps=is_long, task=task)
            for index, text in zip(indices, processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                texts[index] = text
            progress.update(len(indices))
    return Transcripts(texts, encoder_time)
