"""Transcripts, and their conversion to plain text, SubRip and WebVTT."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """
    A part of a transcript with its times.

    Args:
        start (`float`): seconds from the start of the recording.
        end (`float`, *optional*): seconds from the start of the recording; `None` if the model gave no end.
        text (`str`): the text.
    """

    start: float
    end: float | None
    text: str


@dataclass(frozen=True)
class Transcript:
    """
    The transcript of a recording, or the reason why there is none.

    Args:
        index (`int`): index of the recording among all sources.
        audio (`str`): the file, or the row of a dataset.
        duration (`float`, *optional*, defaults to 0): seconds of audio.
        text (`str`, *optional*, defaults to `""`): the whole text.
        segments (`Sequence[Segment]`, *optional*): segments or words, depending on the requested timestamps.
        error (`str`, *optional*): why the recording could not be read; there is no text then.
        fallback (`bool`, *optional*, defaults to `False`): whether the output looked broken and was decoded again with
            all positions computed, see `models/fallback.py`.
    """

    index: int
    audio: str
    duration: float = 0.0
    text: str = ""
    segments: Sequence[Segment] = field(default_factory=list)
    error: str | None = None
    fallback: bool = False


def to_txt(transcript: Transcript) -> str:
    """Converts a transcript to plain text."""
    return transcript.text + "\n"


def to_srt(transcript: Transcript) -> str:
    """Converts a transcript to SubRip: numbered cues with times and text."""
    cues = enumerate(_cues(transcript, ","), start=1)
    return "".join(f"{number}\n{times}\n{text}\n\n" for number, (times, text) in cues)


def to_vtt(transcript: Transcript) -> str:
    """Converts a transcript to WebVTT: cues with times and text."""
    return "WEBVTT\n\n" + "".join(f"{times}\n{text}\n\n" for times, text in _cues(transcript, "."))


TRANSCRIPT_FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_txt, "srt": to_srt, "vtt": to_vtt}


def _cues(transcript: Transcript, decimal_mark: str) -> list[tuple[str, str]]:
    """Times and text of each segment that has text."""
    return [
        (
            f"{_time(segment.start, decimal_mark)} --> "
            f"{_time(transcript.duration if segment.end is None else segment.end, decimal_mark)}",
            segment.text.strip(),
        )
        for segment in transcript.segments
        if segment.text.strip()
    ]


def _time(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(1000 * seconds)
    return (
        f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}"
        f"{decimal_mark}{milliseconds % 1000:03}"
    )
