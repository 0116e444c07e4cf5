"""Transcripts as OpenAI's clients expect them: JSON, text, subtitles or a stream of events."""

import json
import math
from collections.abc import Iterator
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..transcription.formats import TRANSCRIPT_FORMATS, Transcript
from .fields import TranscriptionRequest


def answer(asked: TranscriptionRequest, transcript: Transcript, language: str | None) -> Response:
    """
    The answer to a request.

    Args:
        asked (`TranscriptionRequest`): what it asked for.
        transcript (`Transcript`): what was said.
        language (`str`, *optional*): the code of the language, where the answer names it.
    """
    if asked.stream:
        return StreamingResponse(_events(transcript), media_type="text/event-stream")
    if asked.response_format == "verbose_json":
        return JSONResponse(_verbose(asked, transcript, language))
    if asked.response_format == "json":
        return JSONResponse({"text": transcript.text, "usage": _usage(transcript)})
    return PlainTextResponse(
        TRANSCRIPT_FORMATS["txt" if asked.response_format == "text" else asked.response_format](transcript)
    )


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _verbose(asked: TranscriptionRequest, transcript: Transcript, language: str | None) -> dict[str, Any]:
    """The text with times. Tokens and probabilities of segments, which OpenAI's answer has too, are not known here."""
    code = "en" if asked.decoding.task == "translate" else language or ""  # of the text, as OpenAI has it
    parts = [
        (segment.text, {"start": segment.start, "end": transcript.duration if segment.end is None else segment.end})
        for segment in transcript.segments
    ]
    if asked.decoding.timestamps == "word":
        timed: dict[str, Any] = {"words": [{"word": text, **times} for text, times in parts]}
    else:
        timed = {"segments": [{"id": place, **times, "text": text} for place, (text, times) in enumerate(parts)]}
    return {
        "task": asked.decoding.task,
        "language": LANGUAGES.get(code, code),
        "duration": transcript.duration,
        "text": transcript.text,
        **timed,
        "usage": _usage(transcript),
    }


def _events(transcript: Transcript) -> Iterator[str]:
    for delta in deltas(transcript):
        yield _event("delta", delta=delta)
    yield _event("done", text=transcript.text, usage=_usage(transcript))


def deltas(transcript: Transcript) -> Iterator[str]:
    """The text, cut behind each segment; put together it is the text."""
    text, start = transcript.text, 0
    for segment in transcript.segments:
        place = text.find(segment.text, start)
        if segment.text and place >= 0:
            end = place + len(segment.text)
            yield text[start:end]
            start = end
    if text[start:]:
        yield text[start:]


def _event(kind: str, **values: Any) -> str:
    return f"data: {json.dumps({'type': f'transcript.text.{kind}', **values})}\n\n"
