"""Lists the clips of audio files, folders and streamed Hub datasets."""

import csv
import io
import itertools
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import datasets
import fsspec
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

from ..common.errors import InputError
from .clips import Entry
from .decoding import UNSUPPORTED_SUFFIXES

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
HUB_TIMEOUT = 10  # seconds
ARCHIVES = ("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd")  # fsspec's names of the archives that datasets reads
MAX_FILE_SIZE = 2 << 30  # bytes of a file of a Hub dataset, which is read into memory
MAX_SHARDS = 16  # of a streamed dataset; as many processes can share its files
SHARD_STRIDE = 1_000_000  # between the numbers of the first clips of two shards; larger than any shard
_Shard = Callable[[], Iterator["Entry"]]
_FindText = Callable[[dict[str, Any], str], str | None]  # takes a row of metadata and the name of its source
TEXT_COLUMNS = ("transcription", "transcript", "text", "sentence", "normalized_text", "raw_transcription")


def _source_shards(source: str, seed: int | None, find_text: _FindText) -> list[_Shard]:
    """Splits a source into shards that can be read independently."""
    path = Path(source)
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix.lower() in AUDIO_SUFFIXES + UNSUPPORTED_SUFFIXES:
            raise InputError(f"there is no file or folder {source}; check the path", setting="dataset")
        return _hub_shards(source, seed, find_text)
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
        files = sorted(folder.rglob("*"))
        audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        _report_unsupported(folder, files, needed=not audio)
        entries = [_file_entry(path, find_text({}, str(folder))) for path in audio]
    if not entries:
        raise InputError(
            f"{folder} contains no audio; expected {', '.join(AUDIO_SUFFIXES)} files, or metadata.csv",
            setting="dataset",
        )
    return entries


def _report_unsupported(folder: Path, files: Sequence[Path], needed: bool) -> None:
    """Warns about audio files in unsupported formats, or rejects the folder if it contains nothing else (`needed`)."""
    unsupported = sorted(path.name for path in files if path.suffix.lower() in UNSUPPORTED_SUFFIXES)
    if unsupported:
        others = f" and {len(unsupported) - 1} more" if len(unsupported) > 1 else ""
        message = (
            f"{unsupported[0]}{others} in {folder} cannot be read; convert to wav or flac, for example with ffmpeg"
        )
        if needed:
            raise InputError(message, setting="dataset")
        logger.warning(message)


def _metadata_rows(metadata: Path) -> list[dict[str, Any]]:
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as file:
            if metadata.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{metadata} is malformed ({error}); fix it, or remove it to read every audio file") from error


def _metadata_entry(metadata: Path, row: dict[str, Any], find_text: _FindText) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise InputError(f"{metadata} needs a file name in the column file_name of every row; one row has {found}")
    entry = _file_entry(metadata.parent / row["file_name"], find_text(row, str(metadata)))
    name = Path(row["file_name"])
    return replace(entry, load=_reject) if name.is_absolute() or ".." in name.parts else entry


def _reject() -> NoReturn:
    raise InputError("lies outside the dataset that lists it; a dataset may only list its own files")


def _transcript(row: dict[str, Any], source: str, column: str | None, needed: bool) -> str | None:
    columns = TEXT_COLUMNS if column is None else (column,)
    text = next((row[name] for name in columns if isinstance(row.get(name), str)), None)
    if text is None and needed:
        found = f"its columns are {', '.join(row)}" if row else "it has no metadata.csv"
        raise InputError(
            f"{source} has no transcripts in {' or '.join(columns)}: {found}; "
            "name the column with the transcripts, or another dataset",
            setting="text_column",
        )
    return text


class _StoredAudio(datasets.Audio):
    """Undecoded audio. `datasets.Audio` of datasets 5 requires torchcodec and FFmpeg, even to return a file name."""

    def encode_example(self, value: str | dict[str, Any]) -> dict[str, Any]:
        return {"bytes": None, "path": value} if isinstance(value, str) else value


def _check_reachable(name: str) -> None:
    """Fails immediately if the Hub cannot be reached; datasets would retry for half a minute."""
    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except HTTPError as error:
        if getattr(error, "response", None) is None:
            raise InputError(
                f"cannot open {name}: there is no such file or folder, and the Hub cannot be reached ({error}); check "
                "the path or the connection",
                setting="dataset",
            ) from error
    except (HFValidationError, OfflineModeIsEnabled):  # datasets reports these
        pass


def _open_stream(source: str) -> tuple[datasets.DatasetBuilder, datasets.IterableDataset, str | None]:
    """Opens a Hub dataset: its builder, its rows with undecoded audio, and the name of its audio column, if any."""
    name, config, split = (*source.split(":"), "", "")[:3]
    _check_reachable(name)
    try:
        splits = datasets.get_dataset_split_names(name, config or None)
        split = split or ("train" if "train" in splits else splits[0])
        builder = datasets.load_dataset_builder(name, config or None)
        builder.config.decode_num_threads = 0  # otherwise folders of audio files are decoded before the cast
        stream = builder.as_streaming_dataset(split=split)
    except (ValueError, OSError) as error:
        raise InputError(
            f"cannot open {source}: there is no such file or folder, and opening it as a Hub dataset failed: {error} "
            "Give a path, or org/name:config:split",
            setting="dataset",
        ) from error
    features = stream.features or stream._resolve_features().features or {}
    column = next((column for column, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    return builder, stream.cast_column(column, _StoredAudio(decode=False)) if column else stream, column


def _hub_shards(source: str, seed: int | None, find_text: _FindText) -> list[_Shard]:
    builder, stream, column = _open_stream(source)
    if column is None:
        columns = ", ".join(stream._resolve_features().features or {})
        raise InputError(f"{source} has no audio column; its columns are {columns}", setting="dataset")

    def entries(rows: datasets.IterableDataset, start: int) -> Iterator[Entry]:
        for index, row in enumerate(_rows(rows, source), start):
            audio = row[column] or {}
            name = audio.get("path") or f"{source} row {index}"
            yield Entry(name, partial(_stored_audio, audio, builder.repo_id or ""), find_text(row, source), name)

    if seed is not None:
        return [partial(entries, stream.shuffle(seed=seed, buffer_size=100), 0)]
    shards = min(stream.num_shards, MAX_SHARDS)
    return [
        partial(entries, stream.shard(num_shards=shards, index=number), SHARD_STRIDE * number)
        for number in range(shards)
    ]


def _rows(stream: datasets.IterableDataset, source: str) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of a stream.

    Raises:
        InputError: a row cannot be read, for whatever reason.
    """
    rows = iter(stream)
    for index in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise InputError(
                f"reading {source} failed after {index} rows ({type(error).__name__}: {error}); "
                "run the same command again to resume"
            ) from error
        yield row


def _stored_audio(audio: dict[str, Any], repository: str) -> io.BytesIO:
    """
    Returns the encoded bytes of an undecoded `datasets.Audio` value, which contains them or their path.

    Args:
        audio (`dict`): has `bytes`, or the `path` of a file of the repository or inside one of its archives.
        repository (`str`): id of the dataset repository.

    Raises:
        InputError: the value is empty, the file is too large, or its path points outside the repository; a malicious
            dataset could otherwise read files of this machine and its network.
    """
    if audio.get("bytes") is not None:
        return io.BytesIO(audio["bytes"])
    if not audio.get("path"):
        raise InputError("contains no audio")
    *archives, file = audio["path"].split("::")
    own = re.match(rf"hf://datasets/{re.escape(repository)}(@[^/]+)?/", file) and ".." not in file.split("/")
    if not own or not all(archive.split("://")[0] in ARCHIVES for archive in archives):
        _reject()
    with fsspec.open(audio["path"], "rb") as stream:
        content = stream.read(MAX_FILE_SIZE + 1)
    if len(content) > MAX_FILE_SIZE:
        raise InputError(f"is larger than {MAX_FILE_SIZE >> 30} GB; split it")
    return io.BytesIO(content)
