"""Files, folders and Hub datasets in, the entries of their clips out."""

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
from .decoding import TO_CONVERT

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
TIMEOUT = 10  # seconds for the Hub to answer at all
ARCHIVES = ("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd")  # as fsspec calls what datasets reads files out of
LARGEST = 2 << 30  # bytes of a file of a Hub dataset, which is in memory as a whole
PARTS = 16  # at the most, of a streamed dataset; so many processes can share its files
PART = 1_000_000  # where the numbers of a part's clips begin: more than there are clips in one
_Part = Callable[[], Iterator["Entry"]]
_FindText = Callable[[dict[str, Any], str], str | None]  # of a row of metadata and the name of its source
TEXT_COLUMNS = ("transcription", "transcript", "text", "sentence", "normalized_text", "raw_transcription")


def _source_parts(source: str, seed: int | None, find_text: _FindText) -> list[_Part]:
    """The entries of a source, in parts of which one can be read without the others."""
    path = Path(source)
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix.lower() in AUDIO_SUFFIXES + TO_CONVERT:
            raise InputError(f"there is no file or folder {source}; check the path", setting="dataset")
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
        files = sorted(folder.rglob("*"))
        audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        _tell_of_files_to_convert(folder, files, needed=not audio)
        entries = [_file_entry(path, find_text({}, str(folder))) for path in audio]
    if not entries:
        raise InputError(
            f"{folder} holds no audio; expected {', '.join(AUDIO_SUFFIXES)} files, or metadata.csv", setting="dataset"
        )
    return entries


def _tell_of_files_to_convert(folder: Path, files: Sequence[Path], needed: bool) -> None:
    """Warns of files in a folder that hold sound and cannot be read, or refuses them where there are no others."""
    left_out = sorted(path.name for path in files if path.suffix.lower() in TO_CONVERT)
    if left_out:
        others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        what = f"{left_out[0]}{others} in {folder} cannot be read; convert to wav or flac, for example with ffmpeg"
        if needed:
            raise InputError(what, setting="dataset")
        logger.warning(what)


def _metadata_rows(metadata: Path) -> list[dict[str, Any]]:
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as file:
            if metadata.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{metadata} is malformed ({error}); mend it or remove it to read every audio file") from error


def _metadata_entry(metadata: Path, row: dict[str, Any], find_text: _FindText) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise InputError(f"{metadata} needs a column file_name with a file's name in every row; one has {found}")
    entry = _file_entry(metadata.parent / row["file_name"], find_text(row, str(metadata)))
    name = Path(row["file_name"])
    return replace(entry, load=_refused) if name.is_absolute() or ".." in name.parts else entry


def _refused() -> NoReturn:
    raise InputError("lies outside of the dataset that names it, which may only name audio of its own")


def _transcript(row: dict[str, Any], source: str, column: str | None, needed: bool) -> str | None:
    columns = TEXT_COLUMNS if column is None else (column,)
    text = next((row[name] for name in columns if isinstance(row.get(name), str)), None)
    if text is None and needed:
        found = f"its columns are {', '.join(row)}" if row else "it has no metadata.csv"
        raise InputError(
            f"{source} has no transcripts in {' or '.join(columns)}: {found}; "
            "name the column that holds them, or another dataset",
            setting="text_column",
        )
    return text


class _StoredAudio(datasets.Audio):
    """Audio as it is stored. datasets 5 loads torchcodec and FFmpeg, which users need not have, even to name a file."""

    def encode_example(self, value: str | dict[str, Any]) -> dict[str, Any]:
        return {"bytes": None, "path": value} if isinstance(value, str) else value


def _check_reachable(name: str) -> None:
    """Says at once that the Hub cannot be reached, which datasets finds out by trying again for half a minute."""
    try:
        HfApi().dataset_info(name, timeout=TIMEOUT)
    except HTTPError as error:
        if getattr(error, "response", None) is None:
            raise InputError(
                f"cannot open {name}: it is no file or folder here, and the Hub cannot be reached ({error}); check the "
                "path or the connection",
                setting="dataset",
            ) from error
    except (HFValidationError, OfflineModeIsEnabled):  # of which datasets says what there is to say
        pass


def _open_stream(source: str) -> tuple[datasets.DatasetBuilder, datasets.IterableDataset, str | None]:
    """A Hub dataset, its rows with audio as it is stored, and the column that holds the audio, where there is one."""
    name, config, split = (*source.split(":"), "", "")[:3]
    _check_reachable(name)
    try:
        splits = datasets.get_dataset_split_names(name, config or None)
        split = split or ("train" if "train" in splits else splits[0])
        builder = datasets.load_dataset_builder(name, config or None)
        builder.config.decode_num_threads = 0  # folders of audio files are otherwise decoded before any cast
        stream = builder.as_streaming_dataset(split=split)
    except (ValueError, OSError) as error:
        raise InputError(
            f"cannot open {source}: it is no file or folder here, and as a Hub dataset: {error} "
            "Give a path, or org/name:config:split",
            setting="dataset",
        ) from error
    features = stream.features or stream._resolve_features().features or {}
    column = next((column for column, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    return builder, stream.cast_column(column, _StoredAudio(decode=False)) if column else stream, column


def _hub_parts(source: str, seed: int | None, find_text: _FindText) -> list[_Part]:
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


def _stored_audio(audio: dict[str, Any], repository: str) -> io.BytesIO:
    """
    The encoded bytes of an undecoded `datasets.Audio` value, which holds them or says where they are.

    Args:
        audio (`dict`): with `bytes`, or with the `path` of a file of the repository, also of one inside an archive.
        repository (`str`): the dataset that the value is of.

    Raises:
        InputError: it holds nothing, is too large, or lies somewhere else: the row names it, and would have files of
            this machine and its network read.
    """
    if audio.get("bytes") is not None:
        return io.BytesIO(audio["bytes"])
    if not audio.get("path"):
        raise InputError("holds no audio")
    *archives, file = audio["path"].split("::")
    own = re.match(rf"hf://datasets/{re.escape(repository)}(@[^/]+)?/", file) and ".." not in file.split("/")
    if not own or not all(archive.split("://")[0] in ARCHIVES for archive in archives):
        _refused()
    with fsspec.open(audio["path"], "rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InputError(f"is larger than {LARGEST >> 30} GB; split it")
    return io.BytesIO(content)
