"""From a model and a dataset to a manifest, batch by batch, so that an interrupted run can go on."""

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import SAMPLING_RATE, Clip
from .manifest import Utterance, append, drop_torn_line, read_manifest
from .transcription import GREEDY, Decoding, batches_by_length, now, timed_encoder, transcribe_batch, warm_up

logger = logging.getLogger(__name__)

CHUNK = 512  # clips that are in memory and sorted by length together
NOT_SCORED = "ignore time segment in scoring"  # the leaderboard leaves such references out, and empty ones


def evaluate(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Iterable[Clip],
    path: Path,
    normalize: Callable[[str], str],
    batch_size: int = 8,
    decoding: Decoding = GREEDY,
) -> int:
    """
    Transcribes clips and writes a manifest; utterances that it holds already are not repeated.

    Memory: the model, one batch, and the samples of 512 clips, however large the dataset is.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Iterable[Clip]`): 16 kHz audio of any length with transcripts, always in the same order.
        path (`Path`): the manifest.
        normalize (`Callable`): of references and predictions.
        batch_size (`int`): clips per batch; halved where memory does not suffice.
        decoding (`Decoding`): how text is generated.

    Returns:
        How many clips were left out because nothing is left of their reference.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done: set[int] = set()
    if path.exists():
        drop_torn_line(path)
        done = {utterance.index for utterance in read_manifest(path)}
    left_out = 0
    warm_up(model, processor.feature_extractor)
    numbered = enumerate(clips)
    with tqdm(desc="evaluation", unit="clip", initial=len(done)) as progress:
        while chunk := list(itertools.islice(numbered, CHUNK)):
            scored = [(index, clip) for index, clip in chunk if not _is_left_out(normalize(clip.text or ""))]
            left_out += len(chunk) - len(scored)
            waiting = [(index, clip) for index, clip in scored if index not in done]
            batches = batches_by_length([clip for _, clip in waiting], processor.feature_extractor, batch_size)
            for places in batches:
                for part in _transcribed(model, processor, [waiting[place] for place in places], normalize, decoding):
                    append(path, part)
                    progress.update(len(part))
    return left_out


def _is_left_out(reference: str) -> bool:
    return reference.strip() in ("", NOT_SCORED)


def _transcribed(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    batch: list[tuple[int, Clip]],
    normalize: Callable[[str], str],
    decoding: Decoding,
) -> Iterator[list[Utterance]]:
    """The lines of a batch, in halves where it does not fit into memory."""
    clips = [clip for _, clip in batch]
    start = now(model.device)
    texts = None
    try:
        with timed_encoder(model) as encoder:
            texts, generation = transcribe_batch(model, processor, clips, decoding)
    except RuntimeError as error:
        if len(batch) == 1 or not _is_out_of_memory(error):
            raise
        logger.warning("out of memory with %d clips at once; going on with %d", len(batch), (len(batch) + 1) // 2)
    if texts is None:  # outside of the handler, which holds on to the memory that was taken
        gc.collect()
        torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        for part in (batch[:half], batch[half:]):
            yield from _transcribed(model, processor, part, normalize, decoding)
        return
    seconds = now(model.device) - start
    durations = [len(clip.samples) / SAMPLING_RATE for clip in clips]
    yield [
        Utterance(
            index=index,
            audio_filepath=clip.name,
            duration=duration,
            time=seconds * duration / sum(durations),
            encoder_time=encoder.seconds * duration / sum(durations),
            decoder_time=(generation - encoder.seconds) * duration / sum(durations),
            text=normalize(clip.text or ""),
            pred_text=normalize(text),
            reference=clip.text or "",
            prediction=text,
        )
        for (index, clip), duration, text in zip(batch, durations, texts, strict=True)
    ]


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
