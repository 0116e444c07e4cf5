"""Responses in the formats that OpenAI's clients expect: JSON, text, subtitles or a stream of events."""

import json
import math
from collections.abc import Iterator
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..transcription.formats import TRANSCRIPT_FORMATS, Transcript
from .request_fields import TranscriptionRequest


def build_response(request: TranscriptionRequest, transcript: Transcript, language: str | None) -> Response:
    """
    Builds the response to a request.

    Args:
        request (`TranscriptionRequest`): the parsed request, with the response format.
        transcript (`Transcript`): the transcript of its audio.
        language (`str`, *optional*): language code, for responses that include it.
    """
    if request.stream:
        return StreamingResponse(_events(transcript), media_type="text/event-stream")
    if request.response_format == "verbose_json":
        return JSONResponse(_verbose_json(request, transcript, language))
    if request.response_format == "json":
        return JSONResponse({"text": transcript.text, "usage": _usage(transcript)})
    return PlainTextResponse(
        TRANSCRIPT_FORMATS["txt" if request.response_format == "text" else request.response_format](transcript)
    )


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _verbose_json(request: TranscriptionRequest, transcript: Transcript, language: str | None) -> dict[str, Any]:
    """The text with timestamps. Unlike OpenAI's, segments have no tokens or probabilities."""
    code = "en" if request.options.task == "translate" else language or ""  # language of the text, as with OpenAI
    texts_and_times = [
        (segment.text, {"start": segment.start, "end": transcript.duration if segment.end is None else segment.end})
        for segment in transcript.segments
    ]
    if request.options.timestamps == "word":
        timestamps: dict[str, Any] = {"words": [{"word": text, **times} for text, times in texts_and_times]}
    else:
        timestamps = {
            "segments": [{"id": index, **times, "text": text} for index, (text, times) in enumerate(texts_and_times)]
        }
    return {
        "task": request.options.task,
        "language": LANGUAGES.get(code, code),
        "duration": transcript.duration,
        "text": transcript.text,
        **timestamps,
        "usage": _usage(transcript),
    }


def _events(transcript: Transcript) -> Iterator[str]:
    for delta in text_deltas(transcript):
        yield _event("delta", delta=delta)
    yield _event("done", text=transcript.text, usage=_usage(transcript))


def text_deltas(transcript: Transcript) -> Iterator[str]:
    """Splits the text after each segment; the parts add up to the text."""
    text, start = transcript.text, 0
    for segment in transcript.segments:
        position = text.find(segment.text, start)
        if segment.text and position >= 0:
            end = position + len(segment.text)
            yield text[start:end]
            start = end
    if text[start:]:
        yield text[start:]


def _event(kind: str, **values: Any) -> str:
    return f"data: {json.dumps({'type': f'transcript.text.{kind}', **values})}\n\n"
