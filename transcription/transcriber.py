"""From recordings to transcripts, batch by batch, so that an interrupted run can go on."""

import json
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from tqdm import tqdm
from transformers import AutomaticSpeechRecognitionPipeline, PreTrainedTokenizerBase, WhisperFeatureExtractor

from ..audio import SAMPLING_RATE, Clip, Entry
from ..audio.windows import batches_by_length
from ..common.errors import InputError
from ..common.journal import CHECKSUM, append, check_line, drop_torn_line
from ..models.second_try import all_positions, broken
from .formats import Segment, Transcript

logger = logging.getLogger(__name__)

CHUNK = 256  # recordings that are read ahead and sorted by length together
Chunk = list[tuple[int, Entry]]  # recordings, with their places among all
Timestamps = Literal["none", "segment", "word"]


@dataclass(frozen=True)
class _Recording:
    """What reading gave: samples, unless it is longer than a window or `error` says why there are none."""

    index: int
    entry: Entry
    duration: float = 0.0
    clip: Clip | None = None
    error: str | None = None


class Transcriber:
    """
    Transcribes recordings chunk by chunk.

    Recordings that fit into the model's window are put together in batches of similar length; longer ones go through
    Whisper's sequential long-form decoding one by one. Which ones run together depends on the chunk alone. Where the
    model takes padding for constant, a recording of one window whose transcript looks broken is transcribed again.

    Args:
        recognizer (`AutomaticSpeechRecognitionPipeline`): with the model and its processor.
        batch_size (`int`): windows that run at once.
        timestamps (`str`): the kind of the segments; longer recordings have segments in any case.
        generate_kwargs (`dict`, *optional*): for `generate()`, such as language and task.
    """

    def __init__(
        self,
        recognizer: AutomaticSpeechRecognitionPipeline,
        batch_size: int = 8,
        timestamps: Timestamps = "segment",
        generate_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._recognizer = recognizer
        self._extractor = cast(WhisperFeatureExtractor, recognizer.feature_extractor)
        self._batch_size = batch_size
        self._options: dict[str, Any] = {
            "return_timestamps": {"none": False, "segment": True, "word": "word"}[timestamps],
            "generate_kwargs": generate_kwargs or {},
        }

    def read(self, chunk: Chunk) -> list[_Recording]:
        """Reads the recordings of a chunk, those that fit into a window to keep their samples."""
        window = self._extractor.n_samples / SAMPLING_RATE
        return [_read(index, entry, window) for index, entry in chunk]

    def transcripts(self, chunk: Sequence[_Recording], done: Container[int] = ()) -> Iterator[list[Transcript]]:
        """
        The transcripts of a chunk from `read`, batch by batch; those that were done before are left out.

        A recording that cannot be read has a transcript with the reason.
        """
        yield [_transcript(recording, None) for recording in chunk if recording.error and recording.index not in done]
        short = [(recording, recording.clip) for recording in chunk if recording.clip]
        for places in batches_by_length([clip for _, clip in short], self._extractor, self._batch_size):
            part, clips = zip(*(short[place] for place in places), strict=True)
            if not all(recording.index in done for recording in part):
                found = self._recognize(part, clips, self._options)
                yield [transcript for transcript in found if transcript.index not in done]
        for recording in chunk:
            if recording.clip is None and not recording.error and recording.index not in done:
                options = self._options | {"return_timestamps": self._options["return_timestamps"] or True}
                yield self._recognize([recording], [recording.entry.read()], options)

    def _recognize(
        self, part: Sequence[_Recording], clips: Sequence[Clip], options: dict[str, Any]
    ) -> list[Transcript]:
        results = self._results(clips, options)
        found = [_transcript(recording, result) for recording, result in zip(part, results, strict=True)]
        model, tokenizer = self._recognizer.model, cast(PreTrainedTokenizerBase, self._recognizer.tokenizer)
        retried = broken(model, tokenizer, [transcript.text for transcript in found]) if part[0].clip else []
        if retried:
            with all_positions(model):
                again = self._results([clips[place] for place in retried], options)
            for place, result in zip(retried, again, strict=True):
                found[place] = replace(_transcript(part[place], result), retried=True)
        return found

    def _results(self, clips: Sequence[Clip], options: dict[str, Any]) -> list[dict[str, Any]]:
        inputs: Any = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE} for clip in clips]
        return self._recognizer(inputs, batch_size=len(inputs), **options)


def transcribe_recordings(transcriber: Transcriber, entries: Iterable[Entry], path: Path) -> None:
    """
    Transcribes recordings and writes a JSON line for each, as batches are done; those already there are not repeated.

    The next recordings are read while the model runs. Memory: the model, one batch, and the samples of 512 windows or
    of one longer recording (0.23 GB an hour, and twice as much for its features).

    Args:
        transcriber (`Transcriber`): with the model.
        entries (`Iterable[Entry]`): the recordings, always in the same order.
        path (`Path`): of the lines, each a `Transcript`.
    """
    done = finished(path)
    with ThreadPoolExecutor(1) as reader, lines_to(path, len(done)) as keep:
        for chunk in _read_ahead(reader, transcriber, unfinished_chunks(entries, CHUNK, done, path)):
            for found in transcriber.transcripts(chunk, done):
                keep(found)


@contextmanager
def lines_to(path: Path, done: int) -> Iterator[Callable[[list[Transcript]], None]]:
    """Yields what appends transcripts to a file and shows the progress, `done` recordings being there already."""
    start, heard = time.monotonic(), 0.0
    with tqdm(desc="transcription", unit="recording", initial=done) as progress:

        def keep(found: list[Transcript]) -> None:
            nonlocal heard
            append(path, found)
            heard += sum(transcript.duration for transcript in found)
            speed = heard / (time.monotonic() - start)
            progress.set_postfix_str(f"{speed:.1f} seconds of audio per second", refresh=False)
            progress.update(len(found))

        yield keep


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


def unfinished_chunks(entries: Iterable[Entry], size: int, done: dict[int, str], path: Path) -> Iterator[Chunk]:
    """
    The chunks of so many recordings of which some are not done.

    Raises:
        InputError: `path` holds other recordings than these.
    """
    numbered, last = enumerate(entries), -1
    while chunk := list(islice(numbered, size)):
        for last, entry in chunk:
            if done.get(last, entry.location) != entry.location:
                _refuse(path, f"holds {done[last]} in the place of {entry.location}")
        if not all(index in done for index, _ in chunk):
            yield chunk
    if max(done, default=-1) > last:
        _refuse(path, f"holds {done[max(done)]}, which is there no more")


def _refuse(path: Path, reason: str) -> None:
    raise InputError(f"{path} {reason}; give the same recordings, or remove {path.parent} to begin anew")


def _read_ahead(reader: Executor, transcriber: Transcriber, chunks: Iterable[Chunk]) -> Iterator[list[_Recording]]:
    """Reads a chunk while the one before is used."""
    pending = None
    for chunk in chunks:
        following = reader.submit(transcriber.read, chunk)
        if pending:
            yield pending.result()
        pending = following
    if pending:
        yield pending.result()


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
