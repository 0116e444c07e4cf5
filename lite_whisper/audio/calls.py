"""Calls that a Hub dataset holds in chunks, with one transcript for each whole call in another dataset."""

import random
from functools import partial

from ..common.errors import InputError
from .clips import Chunk, Entry
from .sources import _FindText, _open_stream, _rows, _stored_audio

EARNINGS22 = "ArtificialAnalysis/Earnings22-Cleaned-AA-chunked"
CALLS = {EARNINGS22: "ArtificialAnalysis/Earnings22-Cleaned-AA"}
"""Datasets of chunks, and those that hold the transcripts of their calls."""

AUDIO = "audio"  # the folder of the chunks, which their rows do not name


def in_chunks(source: str) -> bool:
    """Whether a source holds calls in chunks."""
    return source.split(":")[0] in CALLS


def call_entries(source: str, seed: int | None, find_text: _FindText) -> list[Entry]:
    """
    The chunks of a dataset of calls; the text of each is that of its whole call.

    Raises:
        InputError: a dataset cannot be opened, a row is not that of a chunk, or a call has no transcript.
    """
    name, _, split = source.partition(":")
    transcripts = f"{CALLS[name]}:{split}"
    texts = {row.get("id"): find_text(row, transcripts) for row in _rows(_open_stream(transcripts)[1], transcripts)}
    entries = []
    for row in _rows(_open_stream(source)[1], source):
        call, index, file = (row.get(column) for column in ("parent_id", "chunk_index", "file_name"))
        if not isinstance(call, str) or not isinstance(index, int) or not isinstance(file, str):
            raise InputError(
                f"{source} needs the columns parent_id, chunk_index and file_name; its columns are {', '.join(row)}",
                setting="dataset",
            )
        if call not in texts:
            raise InputError(
                f"{transcripts} has no transcript of the call {call}, of which {source} holds a chunk; clear the cache "
                "of datasets, in case one of the two is older",
                setting="dataset",
            )
        path = f"hf://datasets/{name}/{AUDIO}/{file}"
        load = partial(_stored_audio, {"path": path}, name)
        entries.append(Entry(f"{AUDIO}/{file}", load, texts[call], path, Chunk(call, index)))
    if seed is not None:
        random.Random(seed).shuffle(entries)
    return entries
