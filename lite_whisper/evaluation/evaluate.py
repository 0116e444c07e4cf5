"""Transcribe a dataset into a manifest batch by batch, so that an interrupted run can be resumed."""

import gc
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import SAMPLING_RATE, AudioDataset, Clip
from ..audio.windows import batches_by_length
from ..common.errors import InputError
from ..common.json_lines import append_lines, truncate_torn_line
from ..common.processes import all_gather, broadcast, is_main_process
from ..common.timing import now
from .decoding import GREEDY, DecodingOptions, timed_encoder, transcribe_batch, warm_up
from .manifest import CallChunk, Utterance, read_manifest

logger = logging.getLogger(__name__)

BLOCK_SIZE = 128  # clips held in memory and sorted by length together
IGNORED_REFERENCE = "ignore time segment in scoring"  # not scored by the Open ASR leaderboard


def evaluate(  # noqa: PLR0913, PLR0917
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: AudioDataset,
    path: Path,
    normalize: Callable[[str], str],
    batch_size: int = 8,
    decoding: DecodingOptions = GREEDY,
    num_clips: int | None = None,
) -> int:
    """
    Transcribes a dataset and writes a manifest; utterances already in the manifest are skipped.

    Several processes share the clips, and the main process writes the results of all of them after each batch. The
    composition of the batches depends neither on the number of processes nor on earlier interruptions.

    Memory: the model, one batch and the samples of 128 clips, regardless of the size of the dataset.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        dataset (`AudioDataset`): audio with transcripts, in a fixed order.
        path (`Path`): path of the manifest.
        normalize (`Callable`): normalizer of references and predictions.
        batch_size (`int`): clips per batch; halved when memory runs out.
        decoding (`DecodingOptions`): beam search, language and task.
        num_clips (`int`, *optional*): number of clips to evaluate; all by default.

    Returns:
        `int`: number of clips left out because their normalised reference is empty or marked as not scored.

    Raises:
        InputError: if no clip could be read, or the manifest contains clips of another dataset.
    """
    dataset.skipped.clear()
    done = broadcast(_read_done(path) if is_main_process() else {})
    left_out = 0
    warm_up(model, processor.feature_extractor)

    def results() -> Iterator[list[Utterance]]:
        nonlocal left_out
        for block in dataset.blocks(BLOCK_SIZE, num_clips):
            scored = [(index, entry) for index, entry in block if not _is_left_out(normalize(entry.text or ""))]
            left_out += len(block) - len(scored)
            for index, entry in block:
                if done.get(index, entry.name) != entry.name:
                    raise InputError(
                        f"clip {index} is {done[index]} in {path} but {entry.name} in the dataset; evaluate the same "
                        "clips as the interrupted run, choose another output, or remove the file to start again",
                        setting="output",
                    )
            if all(index in done for index, _ in scored):
                continue
            read = [(index, clip) for index, entry in scored if (clip := dataset.read(entry)) is not None]
            for positions in batches_by_length([clip for _, clip in read], processor.feature_extractor, batch_size):
                batch = [read[position] for position in positions]
                if not all(index in done for index, _ in batch):
                    yield from _transcribe_batch(model, processor, batch, normalize, decoding)

    own_results, num_done = results(), len(done)
    with tqdm(desc="evaluation", unit="clip", initial=num_done) as progress:
        while any(parts := all_gather([next(own_results, [])])):
            new = [utterance for part in parts for utterance in part if utterance.index not in done]
            if is_main_process():
                append_lines(path, new)
            num_done += len(new)
            progress.update(len(new))
    dataset.skipped = all_gather(dataset.skipped)
    left_out = sum(all_gather([left_out]))
    dataset.check_found(num_done + left_out)
    return left_out


def _read_done(path: Path) -> dict[int, str]:
    """Indices and clip names of the utterances in the manifest; removes a truncated last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    truncate_torn_line(path)
    return {utterance.index: utterance.audio_filepath for utterance in read_manifest(path)}


def _is_left_out(reference: str) -> bool:
    return reference.strip() in ("", IGNORED_REFERENCE)


def _transcribe_batch(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    batch: list[tuple[int, Clip]],
    normalize: Callable[[str], str],
    decoding: DecodingOptions,
) -> Iterator[list[Utterance]]:
    """Yields the manifest lines of a batch, which is split in halves if it does not fit into memory."""
    clips = [clip for _, clip in batch]
    half = math.ceil(len(batch) / 2)
    start = now(model.device)
    texts = None
    try:
        with timed_encoder(model) as encoder:
            texts, generation, fallback = transcribe_batch(model, processor, clips, decoding)
    except RuntimeError as error:
        if len(batch) == 1 or not _is_out_of_memory(error):
            raise
        logger.warning("out of memory with %d clips per batch; continuing with %d", len(batch), half)
    if texts is None:  # outside the handler, since the exception keeps the memory allocated
        gc.collect()
        torch.cuda.empty_cache()
        for part in (batch[:half], batch[half:]):
            yield from _transcribe_batch(model, processor, part, normalize, decoding)
        return
    seconds = now(model.device) - start
    durations = [len(clip.samples) / SAMPLING_RATE for clip in clips]
    lines: list[Utterance] = []
    for position, ((index, clip), duration, text) in enumerate(zip(batch, durations, texts, strict=True)):
        line = partial(CallChunk, **clip.call_position._asdict()) if clip.call_position else Utterance
        lines.append(
            line(
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
                fallback=position in fallback,
            )
        )
    yield lines


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU, torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
