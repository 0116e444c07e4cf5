"""The clips of several sources, in turn from each, in chunks, and shared by processes."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from ..common.errors import InputError
from ..common.processes import num_processes, shard
from .calls import call_entries, in_chunks
from .clips import Clip, Entry
from .sources import PART, _FindText, _Part, _source_parts, _transcript

logger = logging.getLogger(__name__)


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
        self._sources = [_parts(source, seed, find_text) for source in sources]
        self._names = ", ".join(sources)

    def entries(self) -> Iterator[Entry]:
        """The clips, none of them read yet, in the order in which iteration gives them."""
        return _take_turns([itertools.chain.from_iterable(part() for part in parts) for parts in self._sources])

    def chunks(self, size: int, num_clips: int | None = None) -> Iterator[list[tuple[int, Entry]]]:
        """
        Consecutive clips of each source, none of them read yet; several processes share the chunks.

        A streamed dataset of several files consists of parts, so that no process need read the files of the others;
        where there are fewer parts than processes, or only some clips are wanted, all read it. Each clip comes with a
        number: its place in its part, plus n million in the n-th. Neither the numbers nor what is in a chunk depend on
        how many processes there are.

        Args:
            size (`int`): clips of a chunk.
            num_clips (`int`, *optional*): how many clips to take in all.
        """
        parts = list(enumerate(part for parts in self._sources for part in parts))
        if num_clips is None and len(parts) >= num_processes():
            return itertools.chain.from_iterable(_chunks(part, size, number) for number, part in shard(parts))
        chunks = itertools.chain.from_iterable(_chunks(part, size, number) for number, part in parts)
        return shard(_first(chunks, num_clips))

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
                else f"{self._names} holds no clips; name a dataset with audio",
                setting="dataset",
            )


def _parts(source: str, seed: int | None, find_text: _FindText) -> list[_Part]:
    """The entries of a source, in parts of which one can be read without the others."""
    if in_chunks(source):
        entries = call_entries(source, seed, find_text)
        return [lambda: iter(entries)]
    return _source_parts(source, seed, find_text)


def _chunks(part: _Part, size: int, number: int) -> Iterator[list[tuple[int, Entry]]]:
    """The clips of a part, which is the one of that number."""
    numbered = enumerate(part(), start=PART * number)
    while chunk := list(itertools.islice(numbered, size)):
        yield chunk


def _first(chunks: Iterator[list[tuple[int, Entry]]], num_clips: int | None) -> Iterator[list[tuple[int, Entry]]]:
    """So many clips of the first chunks, or all."""
    for chunk in chunks:
        yield chunk[:num_clips]
        if num_clips is not None:
            num_clips -= len(chunk)
            if num_clips <= 0:
                return


def _take_turns(iterators: list[Iterator[Entry]]) -> Iterator[Entry]:
    """One entry of each iterator in turn, until all are exhausted."""
    nothing = object()
    rounds = itertools.zip_longest(*iterators, fillvalue=nothing)
    return (entry for entry in itertools.chain.from_iterable(rounds) if isinstance(entry, Entry))
