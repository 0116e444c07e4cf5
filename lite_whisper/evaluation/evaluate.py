"""From a model and a dataset to a manifest, batch by batch, so that an interrupted run can go on."""

import gc
import logging
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

CHUNK = 128  # clips that are in memory and sorted by length together
NOT_SCORED = "ignore time segment in scoring"  # the leaderboard leaves such references out, and empty ones


def evaluate(
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
    Transcribes a dataset and writes a manifest; utterances that it holds already are not repeated.

    Several processes share the clips, and after each batch the main process writes what all have found. Which clips run
    together depends neither on the number of processes nor on what was done before an interruption.

    Memory: the model, one batch, and the samples of 128 clips, however large the dataset is.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        dataset (`AudioDataset`): with transcripts, always in the same order.
        path (`Path`): the manifest.
        normalize (`Callable`): of references and predictions.
        batch_size (`int`): clips per batch; halved where memory does not suffice.
        decoding (`DecodingOptions`): how text is generated.
        num_clips (`int`, *optional*): how many clips to take.

    Returns:
        `int`: how many clips were left out because nothing is left of their reference.

    Raises:
        InputError: not one clip could be read, or the manifest holds others.
    """
    dataset.skipped.clear()
    done = broadcast(_finished(path) if is_main_process() else {})
    left_out = 0
    warm_up(model, processor.feature_extractor)

    def results() -> Iterator[list[Utterance]]:
        nonlocal left_out
        for chunk in dataset.chunks(CHUNK, num_clips):
            scored = [(index, entry) for index, entry in chunk if not _is_left_out(normalize(entry.text or ""))]
            left_out += len(chunk) - len(scored)
            for index, entry in chunk:
                if done.get(index, entry.name) != entry.name:
                    raise InputError(
                        f"{path} holds {done[index]} in the place of {entry.name}: the clips are not those of the "
                        "interrupted run; give the same, or another output, or remove the file to begin anew",
                        setting="output",
                    )
            if all(index in done for index, _ in scored):
                continue
            read = [(index, clip) for index, entry in scored if (clip := dataset.read(entry)) is not None]
            for places in batches_by_length([clip for _, clip in read], processor.feature_extractor, batch_size):
                batch = [read[place] for place in places]
                if not all(index in done for index, _ in batch):
                    yield from _transcribed(model, processor, batch, normalize, decoding)

    mine, found = results(), len(done)
    with tqdm(desc="evaluation", unit="clip", initial=found) as progress:
        while any(parts := all_gather([next(mine, [])])):
            new = [utterance for part in parts for utterance in part if utterance.index not in done]
            if is_main_process():
                append_lines(path, new)
            found += len(new)
            progress.update(len(new))
    dataset.skipped = all_gather(dataset.skipped)
    left_out = sum(all_gather([left_out]))
    dataset.check_found(found + left_out)
    return left_out


def _finished(path: Path) -> dict[int, str]:
    """The utterances whose lines are there, and the names of their clips; a line that was cut off is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    truncate_torn_line(path)
    return {utterance.index: utterance.audio_filepath for utterance in read_manifest(path)}


def _is_left_out(reference: str) -> bool:
    return reference.strip() in ("", NOT_SCORED)


def _transcribed(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    batch: list[tuple[int, Clip]],
    normalize: Callable[[str], str],
    decoding: DecodingOptions,
) -> Iterator[list[Utterance]]:
    """The lines of a batch, in halves where it does not fit into memory."""
    clips = [clip for _, clip in batch]
    start = now(model.device)
    texts = None
    try:
        with timed_encoder(model) as encoder:
            texts, generation, fallback = transcribe_batch(model, processor, clips, decoding)
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
    lines: list[Utterance] = []
    for place, ((index, clip), duration, text) in enumerate(zip(batch, durations, texts, strict=True)):
        line = partial(CallChunk, **clip.chunk._asdict()) if clip.chunk else Utterance
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
                fallback=place in fallback,
            )
        )
    yield lines


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
