"""Hub datasets of calls: the audio is stored in chunks, the transcripts of whole calls in a second dataset."""

import random
from functools import partial

from ..common.errors import InputError
from .clips import CallPosition, Entry
from .sources import _FindText, _open_stream, _rows, _stored_audio

EARNINGS22 = "ArtificialAnalysis/Earnings22-Cleaned-AA-chunked"
CALLS = {EARNINGS22: "ArtificialAnalysis/Earnings22-Cleaned-AA"}
"""Maps each dataset of chunks to the dataset with the transcripts of the whole calls."""

AUDIO_FOLDER = "audio"  # holds the chunks; the rows of the dataset do not mention it


def holds_calls(source: str) -> bool:
    """Whether a source is a dataset of calls stored in chunks."""
    return source.split(":")[0] in CALLS


def call_entries(source: str, seed: int | None, find_text: _FindText) -> list[Entry]:
    """
    Lists the chunks of a dataset of calls. The text of every chunk is the transcript of its whole call.

    Raises:
        InputError: a dataset cannot be opened, a row lacks a required column, or a call has no transcript.
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
                f"{transcripts} has no transcript of call {call}, which {source} contains; one of the two may be "
                "outdated in the datasets cache, so clear the cache and try again",
                setting="dataset",
            )
        path = f"hf://datasets/{name}/{AUDIO_FOLDER}/{file}"
        load = partial(_stored_audio, {"path": path}, name)
        entries.append(Entry(f"{AUDIO_FOLDER}/{file}", load, texts[call], path, CallPosition(call, index)))
    if seed is not None:
        random.Random(seed).shuffle(entries)
    return entries
