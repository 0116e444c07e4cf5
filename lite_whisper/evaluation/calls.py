"""Whole calls from the chunks that were transcribed one by one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from .manifest import CallChunk, Utterance


def whole_calls(utterances: Sequence[Utterance]) -> list[Utterance]:
    """
    The lines of a manifest with one for each call in the place of its chunks; manifests without calls stay as they are.

    What was recognised is joined in the order of the chunks, and belongs to the reference of the call. Seconds add up,
    so the real-time factor stays.
    """
    chunks = sorted(
        (each for each in utterances if isinstance(each, CallChunk)), key=lambda c: (c.parent_id, c.chunk_index)
    )
    calls = [_joined(list(of_call)) for _, of_call in groupby(chunks, key=lambda chunk: chunk.parent_id)]
    return [*(each for each in utterances if not isinstance(each, CallChunk)), *calls]


def _joined(chunks: Sequence[CallChunk]) -> Utterance:
    def total(name: str) -> float:
        return sum(getattr(chunk, name) for chunk in chunks)

    def words(name: str) -> str:
        return " ".join(text for chunk in chunks if (text := getattr(chunk, name).strip()))

    return replace(
        chunks[0],
        audio_filepath=chunks[0].parent_id,
        duration=total("duration"),
        time=total("time"),
        encoder_time=total("encoder_time"),
        decoder_time=total("decoder_time"),
        pred_text=words("pred_text"),
        prediction=words("prediction"),
        fallback=any(chunk.fallback for chunk in chunks),
    )
