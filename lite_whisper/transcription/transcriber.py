"""From recordings to transcripts, batch by batch, so that an interrupted run can go on."""

import json
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..audio import SAMPLING_RATE, Clip, Entry
from ..audio.windows import batches_by_length
from ..common.errors import InputError
from ..common.json_lines import CHECKSUM, append_lines, truncate_torn_line, verify_line
from ..models.fallback import computing_all_positions, needs_fallback
from .formats import Segment, Transcript
from .long_recordings import Piece, detected_languages, groups, pieces_of, put_together
from .recognizers import Recognizer

logger = logging.getLogger(__name__)

CHUNK = 256  # recordings that are read ahead and sorted by length together
Chunk = list[tuple[int, Entry]]  # recordings, with their places among all
Timestamps = Literal["none", "segment", "word"]


@dataclass(frozen=True)
class Recording:
    """
    What reading gave: samples, unless it is longer than a window or `error` says why there are none.

    Args:
        index (`int`): its place among all.
        entry (`Entry`): by which a longer one is read again when its turn comes.
        duration (`float`): in seconds.
        clip (`Clip`, *optional*): the samples.
        error (`str`, *optional*): why it cannot be read.
    """

    index: int
    entry: Entry
    duration: float = 0.0
    clip: Clip | None = None
    error: str | None = None

    @classmethod
    def of(cls, index: int, entry: Entry, clip: Clip, window: float) -> "Recording":
        """The recording that a clip was read from; of one longer than a window, in seconds, the samples are dropped."""
        duration = len(clip.samples) / SAMPLING_RATE
        return cls(index, entry, duration, clip if duration <= window else None)


def pipeline_options(
    timestamps: Timestamps = "segment", generate_kwargs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    The options of calls of a recognizer.

    Args:
        timestamps (`str`): the kind of the segments; longer recordings have segments in any case.
        generate_kwargs (`dict`, *optional*): for `generate()`, such as language and task; a language that is there as
            `None` is detected, once in a longer recording.
    """
    return {
        "return_timestamps": {"none": False, "segment": True, "word": "word"}[timestamps],
        "generate_kwargs": generate_kwargs or {},
    }


class Transcriber:
    """
    Transcribes recordings chunk by chunk.

    Recordings that fit into the model's window are put together in batches of similar length. Longer ones are cut where
    they are silent, and the pieces of half an hour of them are put together likewise; or they go through Whisper's
    sequential long-form decoding one by one. Which ones run together depends on the chunk alone. Where the model takes
    padding for constant, a recording of one window or a piece whose transcript looks broken is transcribed again.

    Args:
        recognizer (`Recognizer`): with the model and its processor.
        batch_size (`int`): windows that run at once.
        options (`dict`, *optional*): from `pipeline_options`, which are those of segments by default.
        sequential (`bool`): whether longer recordings run uncut, one by one.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        batch_size: int = 8,
        options: dict[str, Any] | None = None,
        sequential: bool = False,
    ) -> None:
        self._recognizer = recognizer
        self._extractor = recognizer.feature_extractor
        self._batch_size = batch_size
        self._options = options or pipeline_options()
        self._sequential = sequential

    def read(self, chunk: Chunk) -> list[Recording]:
        """Reads the recordings of a chunk, those that fit into a window to keep their samples."""
        window = self._extractor.n_samples / SAMPLING_RATE
        return [_read(index, entry, window) for index, entry in chunk]

    def transcripts(self, chunk: Sequence[Recording], done: Container[int] = ()) -> Iterator[list[Transcript]]:
        """
        The transcripts of a chunk from `read`, batch by batch; those that were done before are left out.

        A recording that cannot be read has a transcript with the reason.
        """
        yield [_transcript(recording, None) for recording in chunk if recording.error and recording.index not in done]
        short = [(recording, recording.clip) for recording in chunk if recording.clip]
        for places in batches_by_length([clip for _, clip in short], self._extractor, self._batch_size):
            part, clips = zip(*(short[place] for place in places), strict=True)
            if not all(recording.index in done for recording in part):
                yield _not_done(part, self._recognize(clips), done)
        long = [recording for recording in chunk if recording.clip is None and not recording.error]
        if self._sequential:
            for recording in long:
                if recording.index not in done:
                    yield [_transcript(recording, self._uncut(recording.entry.read()))]
            return
        for places in groups([recording.duration for recording in long]):
            group = [long[place] for place in places]
            if not all(recording.index in done for recording in group):
                yield _not_done(group, self._from_pieces([recording.entry.read() for recording in group]), done)

    def _uncut(self, clip: Clip) -> dict[str, Any]:
        options = self._options | {"return_timestamps": self._options["return_timestamps"] or True}
        return self._results([clip], options)[0]

    def _from_pieces(self, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        """What `put_together` gives for each of these long recordings."""
        pieces = [piece for place, clip in enumerate(clips) for piece in pieces_of(place, clip, self._extractor)]
        languages = self._languages(pieces)
        results: dict[int, dict[str, Any]] = {}
        for places in batches_by_length([piece.clip for piece in pieces], self._extractor, self._batch_size):
            batch = [pieces[place] for place in places]
            found = self._recognize([piece.clip for piece in batch], [languages[piece.recording] for piece in batch])
            results.update(zip(places, found, strict=True))
        written = {} if self._options["generate_kwargs"].get("task") == "translate" else languages  # or else English
        return [
            put_together(
                [piece for piece in pieces if piece.recording == recording],
                [results[place] for place, piece in enumerate(pieces) if piece.recording == recording],
                written.get(recording),
            )
            for recording in range(len(clips))
        ]

    def _languages(self, pieces: Sequence[Piece]) -> dict[int, str | None]:
        """The language of each recording that has pieces: the one that is told, or that of the first piece."""
        first = {piece.recording: piece.clip for piece in reversed(pieces)}
        generate_kwargs = self._options["generate_kwargs"]
        told = generate_kwargs.get("language")
        if told or "language" not in generate_kwargs:
            return dict.fromkeys(first, told)
        recordings = sorted(first)
        clips = (first[recording] for recording in recordings)
        found = detected_languages(self._recognizer.model, self._extractor, clips, self._batch_size)
        return dict(zip(recordings, found, strict=True))

    def _recognize(self, clips: Sequence[Clip], languages: Sequence[str | None] = ()) -> list[dict[str, Any]]:
        """What the pipeline gives for the clips of one batch, and whether it was asked again for one: `retried`."""
        results = self._results(clips, self._options_for(languages))
        model, tokenizer = self._recognizer.model, self._recognizer.tokenizer
        fallback = needs_fallback(model, tokenizer, [result["text"].strip() for result in results])
        if fallback:
            options = self._options_for([languages[place] for place in fallback] if languages else ())
            with computing_all_positions(model):
                again = self._results([clips[place] for place in fallback], options)
            for place, result in zip(fallback, again, strict=True):
                results[place] = {**result, "fallback": True}
        return results

    def _options_for(self, languages: Sequence[str | None]) -> dict[str, Any]:
        """The options of a batch, with the language of each clip where it is known."""
        if not any(languages):
            return self._options
        return self._options | {"generate_kwargs": self._options["generate_kwargs"] | {"language": list(languages)}}

    def _results(self, clips: Sequence[Clip], options: dict[str, Any]) -> list[dict[str, Any]]:
        inputs: Any = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE} for clip in clips]
        return self._recognizer(inputs, batch_size=len(inputs), **options)


def transcribe_recordings(transcriber: Transcriber, entries: Iterable[Entry], path: Path) -> None:
    """
    Transcribes recordings and writes a JSON line for each, as batches are done; those already there are not repeated.

    The next recordings are read while the model runs. Memory: the model, one batch, and the samples of 512 windows and
    of half an hour, or of one longer recording (0.23 GB an hour; uncut, twice as much for its features).

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
            append_lines(path, found)
            heard += sum(transcript.duration for transcript in found)
            speed = heard / (time.monotonic() - start)
            progress.set_postfix_str(f"{speed:.1f} seconds of audio per second", refresh=False)
            progress.update(len(found))

        yield keep


def finished(path: Path) -> dict[int, str]:
    """The recordings whose lines are there, and where they were; a line that was cut off is removed."""
    if not path.exists():
        return {}
    truncate_torn_line(path)
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
    verify_line(values)
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


def _read_ahead(reader: Executor, transcriber: Transcriber, chunks: Iterable[Chunk]) -> Iterator[list[Recording]]:
    """Reads a chunk while the one before is used."""
    pending = None
    for chunk in chunks:
        following = reader.submit(transcriber.read, chunk)
        if pending:
            yield pending.result()
        pending = following
    if pending:
        yield pending.result()


def _read(index: int, entry: Entry, window: float) -> Recording:
    try:
        clip = entry.read()
    except (InputError, OSError) as error:
        logger.warning("skipped %s: %s", entry.location, error)
        return Recording(index, entry, error=str(error))
    return Recording.of(index, entry, clip, window)


def _transcript(recording: Recording, result: dict[str, Any] | None) -> Transcript:
    if result is None:
        return Transcript(recording.index, recording.entry.location, error=recording.error)
    segments = [
        Segment(chunk["timestamp"][0] or 0.0, chunk["timestamp"][1], chunk["text"].strip())
        for chunk in result.get("chunks", [])
    ]
    text = result["text"].strip()
    return Transcript(
        recording.index,
        recording.entry.location,
        round(recording.duration, 3),
        text,
        segments,
        fallback=result.get("fallback", False),
    )


def _not_done(
    recordings: Sequence[Recording], results: Sequence[dict[str, Any]], done: Container[int]
) -> list[Transcript]:
    """Transcripts of the recordings that ran together, without those that were there before."""
    pairs = zip(recordings, results, strict=True)
    return [_transcript(recording, result) for recording, result in pairs if recording.index not in done]
