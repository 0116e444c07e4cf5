"""From recordings to transcripts, batch by batch, so that an interrupted run can go on."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from tqdm import tqdm
from transformers import AutomaticSpeechRecognitionPipeline, WhisperFeatureExtractor

from ..audio import SAMPLING_RATE, Clip, Entry
from ..errors import InputError
from ..evaluation.manifest import CHECKSUM, append, check_line, drop_torn_line
from ..evaluation.transcription import batches_by_length
from .formats import Segment, Transcript

logger = logging.getLogger(__name__)

CHUNK = 256  # recordings that are read ahead and sorted by length together
Timestamps = Literal["none", "segment", "word"]


@dataclass(frozen=True)
class _Recording:
    """What reading gave: samples, unless it is longer than a window or `error` says why there are none."""

    index: int
    entry: Entry
    duration: float = 0.0
    clip: Clip | None = None
    error: str | None = None


def transcribe_recordings(
    recognizer: AutomaticSpeechRecognitionPipeline,
    entries: Iterable[Entry],
    path: Path,
    batch_size: int = 8,
    timestamps: Timestamps = "segment",
    generate_kwargs: dict[str, Any] | None = None,
) -> None:
    """
    Transcribes recordings and writes a JSON line for each, as batches are done; those already there are not repeated.

    Recordings that fit into the model's window are put together in batches of similar length; longer ones go through
    Whisper's sequential long-form decoding one by one. The next recordings are read while the model runs. Which ones
    run together depends on their order alone, not on what was interrupted.

    Memory: the model, one batch, and the samples of 512 windows or of one longer recording (0.23 GB an hour, and twice
    as much for its features).

    Args:
        recognizer (`AutomaticSpeechRecognitionPipeline`): with the model and its processor.
        entries (`Iterable[Entry]`): the recordings, always in the same order.
        path (`Path`): of the lines, each a `Transcript`; a recording that cannot be read has a line with the reason.
        batch_size (`int`): windows that run at once.
        timestamps (`str`): the kind of the segments; longer recordings have segments in any case.
        generate_kwargs (`dict`, *optional*): for `generate()`, such as language and task.
    """
    done, start, heard = finished(path), time.monotonic(), 0.0
    extractor = cast(WhisperFeatureExtractor, recognizer.feature_extractor)
    asked: dict[str, Any] = {"return_timestamps": {"none": False, "segment": True, "word": "word"}[timestamps]}
    asked["generate_kwargs"] = generate_kwargs or {}

    def transcripts(part: list[_Recording], clips: list[Clip], options: dict[str, Any]) -> list[Transcript]:
        inputs: Any = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE} for clip in clips]
        results = recognizer(inputs, batch_size=len(inputs), **options)
        return [_transcript(recording, result) for recording, result in zip(part, results, strict=True)]

    def keep(found: list[Transcript]) -> None:
        nonlocal heard
        new = [transcript for transcript in found if transcript.index not in done]
        append(path, new)
        heard += sum(transcript.duration for transcript in new)
        progress.set_postfix_str(f"{heard / (time.monotonic() - start):.1f} seconds of audio per second", refresh=False)
        progress.update(len(new))

    with ThreadPoolExecutor(1) as reader, tqdm(desc="transcription", unit="recording", initial=len(done)) as progress:
        for chunk in _read_ahead(reader, _unfinished_chunks(entries, done, path), extractor.n_samples / SAMPLING_RATE):
            keep([_transcript(recording, None) for recording in chunk if recording.error])
            short = [(recording, recording.clip) for recording in chunk if recording.clip]
            for places in batches_by_length([clip for _, clip in short], extractor, batch_size):
                part, clips = zip(*(short[place] for place in places), strict=True)
                if not all(recording.index in done for recording in part):
                    keep(transcripts(list(part), list(clips), asked))
            for recording in chunk:
                if recording.clip is None and not recording.error and recording.index not in done:
                    options = asked | {"return_timestamps": asked["return_timestamps"] or True}
                    keep(transcripts([recording], [recording.entry.read()], options))


def finished(path: Path) -> dict[int, str]:
    """The recordings whose lines are there, and where they were; a line that was cut off is removed."""
    if not path.exists():
        return {}
    drop_torn_line(path)
    return {index: audio for index, (_, audio) in kept_lines(path).items()}


def kept_lines(path: Path) -> dict[int, tuple[int, str]]:
    """
    Of each recording the place where its line begins, and where it was.

    Raises:
        InputError: a line is none of a transcript, is damaged, or comes twice.
    """
    found: dict[int, tuple[int, str]] = {}
    with path.open("rb") as file:
        while True:
            offset = file.tell()
            line = file.readline()
            if not line:
                return found
            try:
                transcript = _parsed(line)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} holds a line that is no transcript, or damaged, at byte {offset} "
                    f"({type(error).__name__}: {error}); remove the line and run again"
                ) from error
            if transcript.index in found:
                raise InputError(
                    f"{path} holds recording {transcript.index} twice; remove one of the lines and run again"
                )
            found[transcript.index] = offset, transcript.audio


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """The transcripts in the order of the recordings; one at a time is in memory."""
    with path.open("rb") as file:
        for _, (offset, _) in sorted(kept_lines(path).items()):
            file.seek(offset)
            yield _parsed(file.readline())


def _parsed(line: bytes) -> Transcript:
    values = json.loads(line)
    check_line(values)
    values.pop(CHECKSUM, None)
    return Transcript(**{**values, "segments": [Segment(**segment) for segment in values["segments"]]})


def _unfinished_chunks(entries: Iterable[Entry], done: dict[int, str], path: Path) -> Iterator[list[tuple[int, Entry]]]:
    numbered, last = enumerate(entries), -1
    while chunk := list(islice(numbered, CHUNK)):
        for last, entry in chunk:
            if done.get(last, entry.location) != entry.location:
                _refuse(path, f"holds {done[last]} in the place of {entry.location}")
        if not all(index in done for index, _ in chunk):
            yield chunk
    if max(done, default=-1) > last:
        _refuse(path, f"holds {done[max(done)]}, which is there no more")


def _refuse(path: Path, reason: str) -> None:
    raise InputError(f"{path} {reason}; give the same recordings, or remove {path.parent} to begin anew")


def _read_ahead(
    reader: Executor, chunks: Iterable[list[tuple[int, Entry]]], window: float
) -> Iterator[list[_Recording]]:
    """Reads a chunk while the one before is used."""
    pending = None
    for chunk in chunks:
        following = reader.submit(_read_chunk, chunk, window)
        if pending:
            yield pending.result()
        pending = following
    if pending:
        yield pending.result()


def _read_chunk(chunk: list[tuple[int, Entry]], window: float) -> list[_Recording]:
    return [_read(index, entry, window) for index, entry in chunk]


def _read(index: int, entry: Entry, window: float) -> _Recording:
    try:
        clip = entry.read()
    except (InputError, OSError) as error:
        logger.warning("skipped %s: %s", entry.location, error)
        return _Recording(index, entry, error=str(error))
    duration = len(clip.samples) / SAMPLING_RATE
    return _Recording(index, entry, duration, clip if duration <= window else None)


def _transcript(recording: _Recording, result: dict[str, Any] | None) -> Transcript:
    if result is None:
        return Transcript(recording.index, recording.entry.location, error=recording.error)
    segments = [
        Segment(chunk["timestamp"][0] or 0.0, chunk["timestamp"][1], chunk["text"].strip())
        for chunk in result.get("chunks", [])
    ]
    text = result["text"].strip()
    return Transcript(recording.index, recording.entry.location, round(recording.duration, 3), text, segments)
