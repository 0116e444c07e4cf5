"""Recordings longer than a window: which run together, their pieces, their language, and the whole from its pieces."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ..audio import SAMPLING_RATE, Clip
from ..audio.silences import pieces

GROUP = 30 * 60  # seconds of recordings whose pieces run together
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "my", "yue")  # as in the tokenizer of Whisper


@dataclass(frozen=True)
class Piece:
    """
    A piece of a long recording.

    Args:
        recording (`int`): the place of the recording in its group.
        start (`float`): where in the recording, in seconds.
        clip (`Clip`): its samples.
    """

    recording: int
    start: float
    clip: Clip

    @property
    def end(self) -> float:
        """Where in the recording it ends, in seconds."""
        return self.start + len(self.clip.samples) / SAMPLING_RATE


def groups(durations: Sequence[float]) -> Iterator[list[int]]:
    """
    The places of recordings whose pieces run together: in their order, until they are half an hour or more.

    Args:
        durations (`Sequence[float]`): of the recordings in seconds; one of half an hour or more is by itself.
    """
    group: list[int] = []
    for place, duration in enumerate(durations):
        if group and duration >= GROUP:
            yield group
            group = []
        group.append(place)
        if sum(durations[member] for member in group) >= GROUP:
            yield group
            group = []
    if group:
        yield group


def pieces_of(recording: int, clip: Clip, extractor: WhisperFeatureExtractor) -> list[Piece]:
    """The pieces of the recording at that place of its group, each of a window at the most; their samples are views."""
    return [
        Piece(recording, start / SAMPLING_RATE, Clip(clip.name, clip.samples[start:end]))
        for start, end in pieces(clip.samples, extractor.n_samples)
    ]


def detected_languages(
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    clips: Iterable[Clip],
    batch_size: int,
) -> list[str]:
    """The language of each clip, such as `"<|de|>"`; so many at once are asked for and run as a batch."""
    waiting, found = iter(clips), list[int]()
    while samples := [clip.samples for clip in islice(waiting, batch_size)]:
        features = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        languages: torch.Tensor = model.detect_language(features.to(model.device, model.dtype))
        found += languages.tolist()
    settings: Any = model.generation_config
    names = {number: name for name, number in settings.lang_to_id.items()}
    return [names[number] for number in found]


def put_together(
    parts: Sequence[Piece], results: Sequence[dict[str, Any]], language: str | None = None
) -> dict[str, Any]:
    """
    What the pipeline would give for a recording, from what it gave for its pieces.

    Args:
        parts (`Sequence[Piece]`): all pieces of the recording, in their order.
        results (`Sequence[dict]`): the pipeline's, of each piece.
        language (`str`, *optional*): of the text, which decides whether there is a space between pieces.

    Returns:
        `dict`: `text`; `chunks` with times in the recording, those of the pieces where there are no times within; and
            whether any piece was `retried`.
    """
    texts = [result["text"].strip() for result in results]
    space = "" if _code(language) in WITHOUT_SPACES else " "
    chunks = [
        {"text": chunk["text"], "timestamp": _shifted(part, *chunk["timestamp"])}
        for part, result in zip(parts, results, strict=True)
        for chunk in result.get("chunks", [{"text": result["text"], "timestamp": (0.0, None)}])
    ]
    fallback = any(result.get("fallback", False) for result in results)
    return {"text": space.join(text for text in texts if text), "chunks": chunks, "fallback": fallback}


def _shifted(part: Piece, start: float | None, end: float | None) -> tuple[float, float]:
    """Times in the recording; Whisper may say no end, or one in the padding behind a piece."""
    last = part.end if end is None else min(part.start + end, part.end)
    return round(min(part.start + (start or 0.0), last), 3), round(last, 3)


def _code(language: str | None) -> str | None:
    """The code of a language that is given by its code, its name or its token."""
    name = (language or "").lower().strip("<|>")
    return TO_LANGUAGE_CODE.get(name, name)
