"""Reading audio: files, folders and Hub datasets in, 16 kHz mono clips out."""

import csv
import io
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import soundfile
import soxr

from .errors import InputError
from .processes import count, share

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000
LOWEST_RATE = 1_000  # Hz; from a mistaken rate of 1 Hz every sample would become 16,000
BLOCK = 1 << 20  # samples of all channels that are decoded at once
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
PARTS = 16  # at the most, of a streamed dataset; so many processes can share its files
PART = 1_000_000  # where the numbers of a part's clips begin: more than there are clips in one
_Part = Callable[[], Iterator["Entry"]]
_FindText = Callable[[dict[str, Any], str], str | None]  # of a row of metadata and the name of its source
TEXT_COLUMNS = ("transcription", "transcript", "text", "sentence", "normalized_text", "raw_transcription")


@dataclass(frozen=True)
class Clip:
    """Decoded audio. `samples` is float32 in [-1, 1] at 16 kHz, mono; `text` its transcript where there is one."""

    name: str
    samples: np.ndarray
    text: str | None = None


@dataclass(frozen=True)
class Entry:
    """
    A clip that has not been read yet.

    name : str, what a published file may say of it
    load : Callable, returns what soundfile can open
    text : str, its transcript where there is one
    location : str, where it is: the path of the file, or the row of a dataset
    """

    name: str
    load: Callable[[], str | Path | io.BytesIO]
    text: str | None
    location: str

    def read(self) -> "Clip":
        """
        The decoded clip.

        Raises:
            InputError: it cannot be decoded, is empty, or not finite.
            OSError: it cannot be opened.
        """
        return Clip(self.name, decode(self.load()), self.text)


def decode(file: str | Path | io.BytesIO) -> np.ndarray:
    """
    Reads wav, flac, ogg or mp3 of any rate and channel count, in blocks: little more is in memory than the result.

    Returns:
        float32 samples, 16 kHz, mono, shape (samples,).

    Raises:
        InputError: not decodable, empty, or not finite.
    """
    try:
        with _opened(file) as stream, _Recording(stream, closefd=False) as sound:
            if sound.samplerate < LOWEST_RATE:
                raise InputError(f"has a sampling rate of {sound.samplerate} Hz; speech needs {LOWEST_RATE} at least")
            blocks = list(_resampled_blocks(sound))
            if not sound.tell():
                raise InputError("holds no audio")
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # Not the whole message: it repeats the path, and what was skipped is told in a file that is published.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"cannot be decoded ({reason.rstrip('.')})") from error
    if not any(map(len, blocks)):
        raise InputError("is shorter than one sample at 16 kHz")
    if not all(np.isfinite(block).all() for block in blocks):
        raise InputError("holds NaN or infinite samples")
    return np.concatenate(blocks)


class _Recording(soundfile.SoundFile):
    """Is read once, from its beginning; soundfile seeks after every block, which a FLAC of unknown length cannot."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(file: str | Path | io.BytesIO) -> Iterator[int | io.BytesIO]:
    """What soundfile opens whatever the file's name: the descriptor, or the bytes as they are."""
    if isinstance(file, io.BytesIO):
        yield file
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError("is no file")
    with path.open("rb") as stream:
        yield stream.fileno()


def _resampled_blocks(sound: _Recording) -> Iterator[np.ndarray]:
    """The samples, mono at 16 kHz, as far as there are any: headers do not always tell the truth."""
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLING_RATE, 1, dtype="float32")
    while len(block := sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            mono = block.mean(axis=1)
        yield resampler.resample_chunk(mono)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


class AudioDataset:
    """
    The clips of several sources, taken in turn from each.

    Clips that cannot be read are skipped with a warning and listed in `skipped` ("name: reason").

    Args:
        sources (`Sequence[str]`):
            Audio files, folders (with or without `metadata.csv` or `metadata.jsonl`) and Hub datasets
            (`org/name`, `org/name:config` or `org/name:config:split`; streamed, the train split by default).
        text_column (`str`, *optional*):
            The column of a dataset, or of `metadata.csv`, with the transcripts; one of `TEXT_COLUMNS` by default.
        need_text (`bool`): whether a clip without a transcript is an error.
        seed (`int`, *optional*):
            Shuffles every source with this seed; without it the order is that of the source. A streamed dataset is
            shuffled by shard and in a buffer of 100 rows.

    Raises:
        InputError: a source does not exist or holds no audio; while iterating, if not one clip was readable, or has no
            transcript where one is needed.
    """

    def __init__(
        self,
        sources: Sequence[str],
        seed: int | None = None,
        text_column: str | None = None,
        need_text: bool = False,
    ) -> None:
        self.skipped: list[str] = []
        find_text = partial(_transcript, column=text_column, needed=need_text)
        self._sources = [_source_parts(source, seed, find_text) for source in sources]
        self._names = ", ".join(sources)

    def entries(self) -> Iterator[Entry]:
        """The clips, none of them read yet, in the order in which iteration gives them."""
        return _take_turns([itertools.chain.from_iterable(part() for part in parts) for parts in self._sources])

    def chunks(self, size: int, num_samples: int | None = None) -> Iterator[list[tuple[int, Entry]]]:
        """
        Consecutive clips of each source, none of them read yet; several processes share the chunks.

        A streamed dataset of several files consists of parts, so that no process need read the files of the others;
        where there are fewer parts than processes, or only some clips are wanted, all read it. Each clip comes with a
        number: its place in its part, plus n million in the n-th. Neither the numbers nor what is in a chunk depend on
        how many processes there are.

        Args:
            size (`int`): clips of a chunk.
            num_samples (`int`, *optional*): how many clips to take in all.
        """
        parts = list(enumerate(part for parts in self._sources for part in parts))
        if num_samples is None and len(parts) >= count():
            return itertools.chain.from_iterable(_chunks(part, size, number) for number, part in share(parts))
        chunks = itertools.chain.from_iterable(_chunks(part, size, number) for number, part in parts)
        return share(_first(chunks, num_samples))

    def read(self, entry: Entry) -> Clip | None:
        """Its clip, or None where that is skipped because it cannot be read."""
        try:
            return entry.read()
        except (InputError, OSError) as error:
            logger.warning("skipped %s: %s", entry.name, error)
            self.skipped.append(f"{entry.name}: {error}")
            return None

    def __iter__(self) -> Iterator[Clip]:
        self.skipped.clear()
        found = 0
        for entry in self.entries():
            clip = self.read(entry)
            if clip is not None:
                found += 1
                yield clip
        self.check_found(found)

    def check_found(self, found: int) -> None:
        """Raises `InputError` where not one clip was found."""
        if not found:
            raise InputError(
                f"none of the {len(self.skipped)} clips in {self._names} could be read, "
                f"the first being {self.skipped[0]}; give wav, flac, ogg or mp3 files"
                if self.skipped
                else f"{self._names} holds no clips; name a dataset with audio"
            )


def _chunks(part: _Part, size: int, number: int) -> Iterator[list[tuple[int, Entry]]]:
    """The clips of a part, which is the one of that number."""
    numbered = enumerate(part(), start=PART * number)
    while chunk := list(itertools.islice(numbered, size)):
        yield chunk


def _first(chunks: Iterator[list[tuple[int, Entry]]], num_samples: int | None) -> Iterator[list[tuple[int, Entry]]]:
    """So many clips of the first chunks, or all."""
    for chunk in chunks:
        yield chunk[:num_samples]
        if num_samples is not None:
            num_samples -= len(chunk)
            if num_samples <= 0:
                return


def _take_turns(iterators: list[Iterator[Entry]]) -> Iterator[Entry]:
    """One entry of each iterator in turn, until all are exhausted."""
    nothing = object()
    rounds = itertools.zip_longest(*iterators, fillvalue=nothing)
    return (entry for entry in itertools.chain.from_iterable(rounds) if isinstance(entry, Entry))


def _source_parts(source: str, seed: int | None, find_text: _FindText) -> list[_Part]:
    """The entries of a source, in parts of which one can be read without the others."""
    path = Path(source)
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix.lower() in AUDIO_SUFFIXES:
            raise InputError(f"there is no file or folder {source}; check the path given to --dataset")
        return _hub_parts(source, seed, find_text)
    entries = _folder_entries(path, find_text) if path.is_dir() else [_file_entry(path, find_text({}, str(path)))]
    if seed is not None:
        random.Random(seed).shuffle(entries)
    return [lambda: iter(entries)]


def _file_entry(path: Path, text: str | None) -> Entry:
    return Entry(f"{path.parent.name}/{path.name}", lambda: path, text, str(path))


def _folder_entries(folder: Path, find_text: _FindText) -> list[Entry]:
    metadata = next((folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()), None)
    if metadata is not None:
        entries = [_metadata_entry(metadata, row, find_text) for row in _metadata_rows(metadata)]
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        entries = [_file_entry(path, find_text({}, str(folder))) for path in files]
    if not entries:
        raise InputError(f"{folder} holds no audio; expected {', '.join(AUDIO_SUFFIXES)} files, or metadata.csv")
    return entries


def _metadata_rows(metadata: Path) -> list[dict[str, Any]]:
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as file:
            if metadata.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{metadata} is malformed ({error}); mend it or remove it to read every audio file") from error


def _metadata_entry(metadata: Path, row: dict[str, Any], find_text: _FindText) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise InputError(f"{metadata} needs a column file_name with a file's name in every row; one has {found}")
    return _file_entry(metadata.parent / row["file_name"], find_text(row, str(metadata)))


def _transcript(row: dict[str, Any], source: str, column: str | None, needed: bool) -> str | None:
    columns = TEXT_COLUMNS if column is None else (column,)
    text = next((row[name] for name in columns if isinstance(row.get(name), str)), None)
    if text is None and needed:
        found = f"its columns are {', '.join(row)}" if row else "it has no metadata.csv"
        raise InputError(
            f"{source} has no transcripts in {' or '.join(columns)}: {found}; "
            "name the column with --text-column, or another dataset"
        )
    return text


class _StoredAudio(datasets.Audio):
    """Audio as it is stored. datasets 5 loads torchcodec and FFmpeg, which users need not have, even to name a file."""

    def encode_example(self, value: str | dict[str, Any]) -> dict[str, Any]:
        return {"bytes": None, "path": value} if isinstance(value, str) else value


def _hub_parts(source: str, seed: int | None, find_text: _FindText) -> list[_Part]:
    name, config, split = (*source.split(":"), "", "")[:3]
    try:
        splits = datasets.get_dataset_split_names(name, config or None)
        split = split or ("train" if "train" in splits else splits[0])
        builder = datasets.load_dataset_builder(name, config or None)
        builder.config.decode_num_threads = 0  # folders of audio files are otherwise decoded before any cast
        stream = builder.as_streaming_dataset(split=split)
    except (ValueError, OSError) as error:
        raise InputError(
            f"cannot open {source}: it is no file or folder here, and as a Hub dataset: {error} "
            "Give a path, or org/name:config:split"
        ) from error
    features = stream.features or stream._resolve_features().features or {}
    column = next((column for column, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    if column is None:
        raise InputError(f"{source} has no audio column; its columns are {', '.join(features)}")
    stream = stream.cast_column(column, _StoredAudio(decode=False))

    def entries(rows: datasets.IterableDataset, start: int) -> Iterator[Entry]:
        for index, row in enumerate(_rows(rows, source), start):
            audio = row[column]
            name = audio["path"] or f"{source} row {index}"
            yield Entry(name, partial(_stored_audio, audio), find_text(row, source), name)

    if seed is not None:
        return [partial(entries, stream.shuffle(seed=seed, buffer_size=100), 0)]
    parts = min(stream.num_shards, PARTS)
    return [partial(entries, stream.shard(num_shards=parts, index=part), PART * part) for part in range(parts)]


def _rows(stream: datasets.IterableDataset, source: str) -> Iterator[dict[str, Any]]:
    """
    The rows of a stream.

    Raises:
        InputError: one cannot be had, for whatever reason; without it what follows cannot be told apart.
    """
    rows = iter(stream)
    for index in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise InputError(
                f"{source} broke off after {index} rows ({type(error).__name__}: {error}); "
                "run the same command again, what was finished is not repeated"
            ) from error
        yield row


def _stored_audio(audio: dict[str, Any]) -> io.BytesIO:
    """The encoded bytes of an undecoded `datasets.Audio` value, which holds them or says where they are."""
    if audio["bytes"] is not None:
        return io.BytesIO(audio["bytes"])
    with fsspec.open(audio["path"], "rb") as file:
        return io.BytesIO(file.read())
