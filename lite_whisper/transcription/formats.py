"""A transcript as text, SubRip or WebVTT."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """
    Text and when it is spoken.

    Args:
        start (`float`): seconds from the start of the recording.
        end (`float`, *optional*): likewise; `None` where the model did not say.
        text (`str`): what is said.
    """

    start: float
    end: float | None
    text: str


@dataclass(frozen=True)
class Transcript:
    """
    What was said in one recording, or why that is unknown.

    Args:
        index (`int`): its place among the sources.
        audio (`str`): the file, or the row of a dataset.
        duration (`float`, *optional*, defaults to 0): seconds of audio.
        text (`str`, *optional*, defaults to `""`): all of it.
        segments (`Sequence[Segment]`, *optional*): segments or words, as asked for.
        error (`str`, *optional*): why it could not be read; then there is no text.
        retried (`bool`, *optional*, defaults to `False`): whether the first try looked broken, see `second_try`.
    """

    index: int
    audio: str
    duration: float = 0.0
    text: str = ""
    segments: Sequence[Segment] = field(default_factory=list)
    error: str | None = None
    fallback: bool = False


def to_txt(transcript: Transcript) -> str:
    """The text alone."""
    return transcript.text + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered blocks of times and text."""
    blocks = enumerate(_timed(transcript, ","), start=1)
    return "".join(f"{number}\n{times}\n{text}\n\n" for number, (times, text) in blocks)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT: blocks of times and text."""
    return "WEBVTT\n\n" + "".join(f"{times}\n{text}\n\n" for times, text in _timed(transcript, "."))


TRANSCRIPT_FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_txt, "srt": to_srt, "vtt": to_vtt}


def _timed(transcript: Transcript, point: str) -> list[tuple[str, str]]:
    """The times of each segment that has text, with that decimal point, and the text."""
    return [
        (f"{_time(s.start, point)} --> {_time(transcript.duration if s.end is None else s.end, point)}", s.text.strip())
        for s in transcript.segments
        if s.text.strip()
    ]


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    return (
        f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}"
        f"{point}{milliseconds % 1000:03}"
    )
