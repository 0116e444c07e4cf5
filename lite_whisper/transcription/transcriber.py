"""Transcribes recordings in batches and saves every transcript as it is done, so that runs can be resumed."""

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
from .long_recordings import Chunk, detect_languages, group_recordings, merge_results, split_into_chunks
from .recognizers import Recognizer

logger = logging.getLogger(__name__)

BLOCK_SIZE = 256  # recordings that are read ahead and sorted by length together
Block = list[tuple[int, Entry]]  # recordings with their indices among all recordings
Timestamps = Literal["none", "segment", "word"]


@dataclass(frozen=True)
class Recording:
    """
    A recording that has been read. Its samples are kept only if it fits into a window.

    Args:
        index (`int`): index among all recordings.
        entry (`Entry`): reads a longer recording again when it is transcribed.
        duration (`float`): in seconds.
        clip (`Clip`, *optional*): the samples.
        error (`str`, *optional*): reason why the recording cannot be read.
    """

    index: int
    entry: Entry
    duration: float = 0.0
    clip: Clip | None = None
    error: str | None = None

    @classmethod
    def from_entry(cls, index: int, entry: Entry, clip: Clip, window: float) -> "Recording":
        """The recording of an entry read as `clip`, whose samples are dropped if it exceeds `window` seconds."""
        duration = len(clip.samples) / SAMPLING_RATE
        return cls(index, entry, duration, clip if duration <= window else None)


def pipeline_options(
    timestamps: Timestamps = "segment", generate_kwargs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    Builds the options for calling a recognizer.

    Args:
        timestamps (`str`): granularity of the timestamps; recordings longer than a window always have segments.
        generate_kwargs (`dict`, *optional*): for `generate()`, such as language and task. If the language is `None`,
            it is detected, once per recording.
    """
    return {
        "return_timestamps": {"none": False, "segment": True, "word": "word"}[timestamps],
        "generate_kwargs": generate_kwargs or {},
    }


class Transcriber:
    """
    Transcribes blocks of recordings.

    Recordings that fit into the model's window are batched by length. Longer ones are split at silences, and the chunks
    of half an hour of recordings are batched likewise; or they are decoded one by one with Whisper's sequential
    long-form decoding. The composition of batches depends only on the block. With constant padding, windows whose
    transcript looks broken are decoded again with all positions computed (fallback).

    Args:
        recognizer (`Recognizer`): the model and its processor.
        batch_size (`int`): windows per batch.
        options (`dict`, *optional*): from `pipeline_options`, whose defaults apply.
        sequential (`bool`): whether to decode longer recordings sequentially, without splitting them.
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

    def read(self, block: Block) -> list[Recording]:
        """Reads the recordings of a block; those that fit into a window keep their samples."""
        window = self._extractor.n_samples / SAMPLING_RATE
        return [_read(index, entry, window) for index, entry in block]

    def transcripts(self, block: Sequence[Recording], done: Container[int] = ()) -> Iterator[list[Transcript]]:
        """
        Transcribes a block from `read`, batch by batch, and skips recordings whose index is in `done`.

        The transcript of an unreadable recording contains the reason.
        """
        yield [_transcript(recording, None) for recording in block if recording.error and recording.index not in done]
        short = [(recording, recording.clip) for recording in block if recording.clip]
        for indices in batches_by_length([clip for _, clip in short], self._extractor, self._batch_size):
            batch, clips = zip(*(short[index] for index in indices), strict=True)
            if not all(recording.index in done for recording in batch):
                yield _new_transcripts(batch, self._recognize(clips), done)
        long = [recording for recording in block if recording.clip is None and not recording.error]
        if self._sequential:
            for recording in long:
                if recording.index not in done:
                    yield [_transcript(recording, self._decode_sequentially(recording.entry.read()))]
            return
        for indices in group_recordings([recording.duration for recording in long]):
            group = [long[index] for index in indices]
            if not all(recording.index in done for recording in group):
                yield _new_transcripts(
                    group, self._decode_chunks([recording.entry.read() for recording in group]), done
                )

    def _decode_sequentially(self, clip: Clip) -> dict[str, Any]:
        options = self._options | {"return_timestamps": self._options["return_timestamps"] or True}
        return self._results([clip], options)[0]

    def _decode_chunks(self, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        """Splits long recordings into chunks, and returns the merged result of each recording."""
        chunks = [
            chunk for index, clip in enumerate(clips) for chunk in split_into_chunks(index, clip, self._extractor)
        ]
        languages = self._languages(chunks)
        results: dict[int, dict[str, Any]] = {}
        for indices in batches_by_length([chunk.clip for chunk in chunks], self._extractor, self._batch_size):
            batch = [chunks[index] for index in indices]
            found = self._recognize([chunk.clip for chunk in batch], [languages[chunk.recording] for chunk in batch])
            results.update(zip(indices, found, strict=True))
        # Translations are English, whatever the language of the audio.
        text_languages = {} if self._options["generate_kwargs"].get("task") == "translate" else languages
        return [
            merge_results(
                [chunk for chunk in chunks if chunk.recording == recording],
                [results[index] for index, chunk in enumerate(chunks) if chunk.recording == recording],
                text_languages.get(recording),
            )
            for recording in range(len(clips))
        ]

    def _languages(self, chunks: Sequence[Chunk]) -> dict[int, str | None]:
        """The language of each recording that has chunks: the one set, or the one detected in its first chunk."""
        first = {chunk.recording: chunk.clip for chunk in reversed(chunks)}
        generate_kwargs = self._options["generate_kwargs"]
        language = generate_kwargs.get("language")
        if language or "language" not in generate_kwargs:
            return dict.fromkeys(first, language)
        recordings = sorted(first)
        clips = (first[recording] for recording in recordings)
        detected = detect_languages(self._recognizer.model, self._extractor, clips, self._batch_size)
        return dict(zip(recordings, detected, strict=True))

    def _recognize(self, clips: Sequence[Clip], languages: Sequence[str | None] = ()) -> list[dict[str, Any]]:
        """The pipeline's results for a batch; those decoded with the fallback have `fallback` set."""
        results = self._results(clips, self._batch_options(languages))
        model, tokenizer = self._recognizer.model, self._recognizer.tokenizer
        fallback = needs_fallback(model, tokenizer, [result["text"].strip() for result in results])
        if fallback:
            options = self._batch_options([languages[index] for index in fallback] if languages else ())
            with computing_all_positions(model):
                repeated = self._results([clips[index] for index in fallback], options)
            for index, result in zip(fallback, repeated, strict=True):
                results[index] = {**result, "fallback": True}
        return results

    def _batch_options(self, languages: Sequence[str | None]) -> dict[str, Any]:
        """The options of a batch, with the language of each clip if known."""
        if not any(languages):
            return self._options
        return self._options | {"generate_kwargs": self._options["generate_kwargs"] | {"language": list(languages)}}

    def _results(self, clips: Sequence[Clip], options: dict[str, Any]) -> list[dict[str, Any]]:
        inputs: Any = [{"raw": clip.samples, "sampling_rate": SAMPLING_RATE} for clip in clips]
        return self._recognizer(inputs, batch_size=len(inputs), **options)


def transcribe_recordings(transcriber: Transcriber, entries: Iterable[Entry], path: Path) -> None:
    """
    Transcribes recordings and appends a JSON line for each to a file. Recordings already in the file are skipped.

    The next block is read while the model runs. Memory: the model, one batch, and the samples of 512 windows plus half
    an hour of recordings or one longer recording (0.23 GB per hour; sequentially, twice as much for its features).

    Args:
        transcriber (`Transcriber`): runs the model.
        entries (`Iterable[Entry]`): the recordings, in the same order on every run.
        path (`Path`): file of JSON lines, each a `Transcript`.
    """
    done = finished_recordings(path)
    with ThreadPoolExecutor(1) as reader, transcript_writer(path, len(done)) as write:
        for block in _read_ahead(reader, transcriber, unfinished_blocks(entries, BLOCK_SIZE, done, path)):
            for transcripts in transcriber.transcripts(block, done):
                write(transcripts)


@contextmanager
def transcript_writer(path: Path, done: int) -> Iterator[Callable[[list[Transcript]], None]]:
    """Yields a function that appends transcripts to a file and updates a progress bar, which starts at `done`."""
    start, seconds = time.monotonic(), 0.0
    with tqdm(desc="transcription", unit="recording", initial=done) as progress:

        def write(transcripts: list[Transcript]) -> None:
            nonlocal seconds
            append_lines(path, transcripts)
            seconds += sum(transcript.duration for transcript in transcripts)
            speed = seconds / (time.monotonic() - start)
            progress.set_postfix_str(f"RTFx {speed:.1f}", refresh=False)
            progress.update(len(transcripts))

        yield write


def finished_recordings(path: Path) -> dict[int, str]:
    """Maps the indices of the recordings in a file of transcripts to their locations; drops an incomplete last line."""
    if not path.exists():
        return {}
    truncate_torn_line(path)
    return {index: audio for index, (_, audio) in line_offsets(path).items()}


def line_offsets(path: Path) -> dict[int, tuple[int, str]]:
    """
    Maps the index of each recording to the byte offset of its line and to its location.

    Raises:
        InputError: a line is damaged or is not a transcript, or a recording occurs twice.
    """
    found: dict[int, tuple[int, str]] = {}
    with path.open("rb") as file:
        while True:
            offset = file.tell()
            line = file.readline()
            if not line:
                return found
            try:
                transcript = _parse_line(line)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} has a damaged or invalid line at byte {offset} "
                    f"({type(error).__name__}: {error}); remove the line and run again"
                ) from error
            if transcript.index in found:
                raise InputError(
                    f"{path} contains recording {transcript.index} twice; remove one of the lines and run again"
                )
            found[transcript.index] = offset, transcript.audio


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """Yields the transcripts of a file in the order of the recordings, one at a time."""
    with path.open("rb") as file:
        for _, (offset, _) in sorted(line_offsets(path).items()):
            file.seek(offset)
            yield _parse_line(file.readline())


def _parse_line(line: bytes) -> Transcript:
    values = json.loads(line)
    verify_line(values)
    values.pop(CHECKSUM, None)
    return Transcript(**{**values, "segments": [Segment(**segment) for segment in values["segments"]]})


def unfinished_blocks(entries: Iterable[Entry], size: int, done: dict[int, str], path: Path) -> Iterator[Block]:
    """
    Yields the blocks of `size` recordings that are not finished.

    Raises:
        InputError: `path` has transcripts of other recordings.
    """
    numbered, last = enumerate(entries), -1
    while block := list(islice(numbered, size)):
        for last, entry in block:
            if done.get(last, entry.location) != entry.location:
                _refuse_to_resume(path, f"contains {done[last]} instead of {entry.location}")
        if not all(index in done for index, _ in block):
            yield block
    if max(done, default=-1) > last:
        _refuse_to_resume(path, f"contains {done[max(done)]}, which is no longer among the recordings")


def _refuse_to_resume(path: Path, reason: str) -> None:
    raise InputError(f"{path} {reason}; give the same recordings, or remove {path.parent} to start over")


def _read_ahead(reader: Executor, transcriber: Transcriber, blocks: Iterable[Block]) -> Iterator[list[Recording]]:
    """Reads the next block while the caller processes the current one."""
    pending = None
    for block in blocks:
        following = reader.submit(transcriber.read, block)
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
    return Recording.from_entry(index, entry, clip, window)


def _transcript(recording: Recording, result: dict[str, Any] | None) -> Transcript:
    if result is None:
        return Transcript(recording.index, recording.entry.location, error=recording.error)
    segments = [
        Segment(segment["timestamp"][0] or 0.0, segment["timestamp"][1], segment["text"].strip())
        for segment in result.get("chunks", [])
    ]
    return Transcript(
        recording.index,
        recording.entry.location,
        round(recording.duration, 3),
        result["text"].strip(),
        segments,
        fallback=result.get("fallback", False),
    )


def _new_transcripts(
    recordings: Sequence[Recording], results: Sequence[dict[str, Any]], done: Container[int]
) -> list[Transcript]:
    """Transcripts of recordings that were processed together, without those already done."""
    pairs = zip(recordings, results, strict=True)
    return [_transcript(recording, result) for recording, result in pairs if recording.index not in done]
