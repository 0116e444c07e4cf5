"""Recordings longer than a window: grouping, splitting into chunks, language detection and merging of results."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ..audio import SAMPLING_RATE, Clip
from ..audio.silences import split_at_silences

GROUP_SECONDS = 30 * 60  # recordings whose chunks are batched together
LANGUAGES_WITHOUT_SPACES = ("zh", "ja", "th", "lo", "my", "yue")  # as in Whisper's tokenizer


@dataclass(frozen=True)
class Chunk:
    """
    A part of a long recording that fits into a window.

    Args:
        recording (`int`): index of the recording in its group.
        start (`float`): start of the chunk within the recording, in seconds.
        clip (`Clip`): its audio.
    """

    recording: int
    start: float
    clip: Clip

    @property
    def end(self) -> float:
        """End of the chunk within the recording, in seconds."""
        return self.start + len(self.clip.samples) / SAMPLING_RATE


def group_recordings(durations: Sequence[float]) -> Iterator[list[int]]:
    """
    Groups consecutive recordings until a group reaches half an hour. The chunks of a group are batched together.

    Args:
        durations (`Sequence[float]`): of the recordings, in seconds; one of half an hour or more forms its own group.

    Yields:
        `list[int]`: indices of the recordings of a group.
    """
    group: list[int] = []
    for index, duration in enumerate(durations):
        if group and duration >= GROUP_SECONDS:
            yield group
            group = []
        group.append(index)
        if sum(durations[member] for member in group) >= GROUP_SECONDS:
            yield group
            group = []
    if group:
        yield group


def split_into_chunks(recording: int, clip: Clip, extractor: WhisperFeatureExtractor) -> list[Chunk]:
    """Splits the recording with this index in its group into chunks of at most a window; the samples are views."""
    return [
        Chunk(recording, start / SAMPLING_RATE, Clip(clip.name, clip.samples[start:end]))
        for start, end in split_at_silences(clip.samples, extractor.n_samples)
    ]


def detect_languages(
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    clips: Iterable[Clip],
    batch_size: int,
) -> list[str]:
    """Detects the language of each clip, such as `"<|de|>"`; at most `batch_size` clips are in memory at once."""
    remaining, tokens = iter(clips), list[int]()
    while samples := [clip.samples for clip in islice(remaining, batch_size)]:
        features = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        languages: torch.Tensor = model.detect_language(features.to(model.device, model.dtype))
        tokens += languages.tolist()
    generation_config: Any = model.generation_config
    names = {token: name for name, token in generation_config.lang_to_id.items()}
    return [names[token] for token in tokens]


def merge_results(
    chunks: Sequence[Chunk], results: Sequence[dict[str, Any]], language: str | None = None
) -> dict[str, Any]:
    """
    Merges the results of the chunks of a recording into one result, in the form of the transformers pipeline.

    Args:
        chunks (`Sequence[Chunk]`): all chunks of the recording, in order.
        results (`Sequence[dict]`): the pipeline's result for each chunk.
        language (`str`, *optional*): of the text; decides whether the texts of chunks are joined with spaces.

    Returns:
        `dict`: `text`; `chunks`, segments with times relative to the recording (without timestamps, one segment per
            chunk of audio); and `fallback`, whether any chunk was decoded with the fallback.
    """
    texts = [result["text"].strip() for result in results]
    separator = "" if _language_code(language) in LANGUAGES_WITHOUT_SPACES else " "
    segments = [
        {"text": segment["text"], "timestamp": _recording_times(chunk, *segment["timestamp"])}
        for chunk, result in zip(chunks, results, strict=True)
        for segment in result.get("chunks", [{"text": result["text"], "timestamp": (0.0, None)}])
    ]
    fallback = any(result.get("fallback", False) for result in results)
    return {"text": separator.join(text for text in texts if text), "chunks": segments, "fallback": fallback}


def _recording_times(chunk: Chunk, start: float | None, end: float | None) -> tuple[float, float]:
    """Converts times in a chunk to times in the recording. Whisper may give no end, or one in the padding."""
    last = chunk.end if end is None else min(chunk.start + end, chunk.end)
    return round(min(chunk.start + (start or 0.0), last), 3), round(last, 3)


def _language_code(language: str | None) -> str | None:
    """The code of a language given by its code, name or token."""
    name = (language or "").lower().strip("<|>")
    return TO_LANGUAGE_CODE.get(name, name)
