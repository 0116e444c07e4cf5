"""Join the transcribed chunks of a call, so that the call can be scored as a whole."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from .manifest import CallChunk, Utterance


def whole_calls(utterances: Sequence[Utterance]) -> list[Utterance]:
    """
    Replaces the chunks of each call by one utterance; utterances that are not part of a call stay unchanged.

    The predictions of the chunks are joined in their order and compared with the reference of the call. Durations and
    times are summed, so the real-time factor does not change.

    Args:
        utterances (`Sequence[Utterance]`): the lines of a manifest.

    Returns:
        `list[Utterance]`: utterances that are not part of a call, then one utterance per call.
    """
    chunks = sorted(
        (utterance for utterance in utterances if isinstance(utterance, CallChunk)),
        key=lambda chunk: (chunk.parent_id, chunk.chunk_index),
    )
    calls = [_join_chunks(list(call)) for _, call in groupby(chunks, key=lambda chunk: chunk.parent_id)]
    return [*(utterance for utterance in utterances if not isinstance(utterance, CallChunk)), *calls]


def _join_chunks(chunks: Sequence[CallChunk]) -> Utterance:
    def total(name: str) -> float:
        return sum(getattr(chunk, name) for chunk in chunks)

    def joined_text(name: str) -> str:
        return " ".join(text for chunk in chunks if (text := getattr(chunk, name).strip()))

    return replace(
        chunks[0],
        audio_filepath=chunks[0].parent_id,
        duration=total("duration"),
        time=total("time"),
        encoder_time=total("encoder_time"),
        decoder_time=total("decoder_time"),
        pred_text=joined_text("pred_text"),
        prediction=joined_text("prediction"),
        fallback=any(chunk.fallback for chunk in chunks),
    )
