"""`AudioDataset`: interleaves the clips of several sources, and splits them into blocks for several processes."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from ..common.errors import InputError
from ..common.processes import num_processes, shard
from .calls import call_entries, holds_calls
from .clips import Clip, Entry
from .sources import SHARD_STRIDE, _FindText, _Shard, _source_shards, _transcript

logger = logging.getLogger(__name__)


class AudioDataset:
    """
    The clips of several sources, interleaved.

    Clips that cannot be read are skipped with a warning and listed in `skipped` ("name: reason").

    Args:
        sources (`Sequence[str]`):
            Audio files, folders (with or without `metadata.csv` or `metadata.jsonl`) and Hub datasets
            (`org/name`, `org/name:config` or `org/name:config:split`; streamed, the train split by default).
        text_column (`str`, *optional*):
            The column of a dataset, or of `metadata.csv`, with the transcripts; one of `TEXT_COLUMNS` by default.
        need_text (`bool`): whether a clip without a transcript is an error.
        seed (`int`, *optional*):
            Shuffles every source with this seed; by default the order of the source is kept. A streamed dataset is
            shuffled by shard and in a buffer of 100 rows.

    Raises:
        InputError: a source does not exist or contains no audio; while iterating, if no clip can be read, or if a
            required transcript is missing.
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
        self._sources = [_shards(source, seed, find_text) for source in sources]
        self._names = ", ".join(sources)

    def entries(self) -> Iterator[Entry]:
        """Yields the clips without reading them, in iteration order."""
        return _interleave([itertools.chain.from_iterable(load() for load in shards) for shards in self._sources])

    def blocks(self, size: int, num_clips: int | None = None) -> Iterator[list[tuple[int, Entry]]]:
        """
        Yields blocks of consecutive clips of one source, without reading them. Processes share the blocks.

        A streamed dataset with several files is split into shards, so that each process only reads its own files. With
        fewer shards than processes, or when `num_clips` is given, every process reads the whole dataset. Each clip
        comes with a number: its position in its shard, plus n million in the n-th shard. Neither these numbers nor
        the contents of the blocks depend on the number of processes.

        Args:
            size (`int`): clips per block.
            num_clips (`int`, *optional*): maximum number of clips in total.
        """
        shards = list(enumerate(load for shards in self._sources for load in shards))
        if num_clips is None and len(shards) >= num_processes():
            return itertools.chain.from_iterable(_blocks(load, size, number) for number, load in shard(shards))
        blocks = itertools.chain.from_iterable(_blocks(load, size, number) for number, load in shards)
        return shard(_limit(blocks, num_clips))

    def read(self, entry: Entry) -> Clip | None:
        """Reads a clip; returns None, and records it in `skipped`, if it cannot be read."""
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
        """Raises `InputError` if no clip was found."""
        if not found:
            raise InputError(
                f"none of the {len(self.skipped)} clips in {self._names} could be read "
                f"(first: {self.skipped[0]}); provide wav, flac, ogg or mp3 files"
                if self.skipped
                else f"{self._names} contains no clips; name a dataset with audio",
                setting="dataset",
            )


def _shards(source: str, seed: int | None, find_text: _FindText) -> list[_Shard]:
    """Splits a source into shards that can be read independently."""
    if holds_calls(source):
        entries = call_entries(source, seed, find_text)
        return [lambda: iter(entries)]
    return _source_shards(source, seed, find_text)


def _blocks(load: _Shard, size: int, number: int) -> Iterator[list[tuple[int, Entry]]]:
    """Splits the shard with this number into blocks of numbered clips."""
    numbered = enumerate(load(), start=SHARD_STRIDE * number)
    while block := list(itertools.islice(numbered, size)):
        yield block


def _limit(blocks: Iterator[list[tuple[int, Entry]]], num_clips: int | None) -> Iterator[list[tuple[int, Entry]]]:
    """The first blocks, up to `num_clips` clips in total, or all of them."""
    for block in blocks:
        yield block[:num_clips]
        if num_clips is not None:
            num_clips -= len(block)
            if num_clips <= 0:
                return


def _interleave(iterators: list[Iterator[Entry]]) -> Iterator[Entry]:
    """One entry of each iterator in turn, until all are exhausted."""
    nothing = object()
    rounds = itertools.zip_longest(*iterators, fillvalue=nothing)
    return (entry for entry in itertools.chain.from_iterable(rounds) if isinstance(entry, Entry))
