"""Check what word error rates do not show: timestamps, words in silence, language detection and translation."""

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from ..audio import SAMPLING_RATE, AudioDataset, Clip
from ..audio.windows import batches_by_length
from ..common.processes import available_device
from ..models.folders import load_model
from .comparison import EvaluationSettings
from .decoding import DecodingOptions, transcribe_batch
from .word_error_rate import error_rates, text_normalizer

CLIPS_PER_DATASET = 50
CLIPS_PER_SOUND = 8
AMPLITUDE = 0.05

Row = dict[str, float | int | None]
"""Differences between a model and its base model by name; `None` if there is nothing to compare."""


@dataclass(frozen=True)
class TimedText:
    """
    A word or segment with its timestamps.

    Args:
        text (`str`): normalised text.
        start (`float`): start time in seconds.
        end (`float`, *optional*): end time in seconds; `None` if the model predicted none.
    """

    text: str
    start: float
    end: float | None


@dataclass
class RobustnessOutputs:
    """
    The outputs of one model that are compared with those of the base model.

    Args:
        words (`list[list[TimedText]]`, *optional*): one list per clip; `None` if the model has no alignment heads.
        segments (`list[list[TimedText]]`): one list per clip.
        inserted (`dict[str, int]`): number of words transcribed from each kind of sound without speech.
        languages (`list[str]`, *optional*): detected language of each clip; `None` for an English-only model.
        translations (`list[str]`, *optional*): English translation of each clip; `None` for an English-only model.
    """

    words: list[list[TimedText]] | None
    segments: list[list[TimedText]]
    inserted: dict[str, int]
    languages: list[str] | None
    translations: list[str] | None


def sounds_without_speech(seconds: float, seed: int = 0) -> dict[str, list[Clip]]:
    """Clips of silence, white noise and 50 Hz mains hum with the given length in seconds."""
    generator = np.random.default_rng(seed)
    count = int(seconds * SAMPLING_RATE)
    time = np.arange(count) / SAMPLING_RATE
    sounds: dict[str, Callable[[], np.ndarray]] = {
        "silence": lambda: np.zeros(count),
        "noise": lambda: AMPLITUDE * generator.standard_normal(count),
        "hum": lambda: AMPLITUDE * np.sin(2 * np.pi * 50 * time + generator.uniform(0, 2 * np.pi)),
    }
    return {
        name: [Clip(name, sound().astype(np.float32)) for _ in range(CLIPS_PER_SOUND)] for name, sound in sounds.items()
    }


def collect_outputs(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    normalize: Callable[[str], str],
    batch_size: int = 8,
) -> RobustnessOutputs:
    """
    Transcribes clips with timestamps, transcribes sounds without speech, detects languages and translates.

    Word timestamps make transformers switch the model permanently to eager attention, so pass a model that is not used
    for anything else.

    Args:
        model (`WhisperForConditionalGeneration`): a Whisper or LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        clips (`Sequence[Clip]`): 16 kHz audio.
        normalize (`Callable`): text normalizer.
        batch_size (`int`): clips per batch.
    """
    extractor = processor.feature_extractor
    recognizer = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=extractor,
        device=model.device,
        dtype=model.dtype,
    )
    settings: Any = model.generation_config
    multilingual = getattr(settings, "is_multilingual", False)
    options: dict[str, Any] = {"num_beams": 1, **({"task": "transcribe"} if multilingual else {})}

    def timed_texts(timestamps: bool | str) -> list[list[TimedText]]:
        outputs = []
        for clip in tqdm(clips, "timestamps", unit="clip"):
            output = recognizer(
                {"raw": clip.samples, "sampling_rate": SAMPLING_RATE},
                return_timestamps=timestamps,
                generate_kwargs=options,
            )
            chunks: list[dict[str, Any]] = output["chunks"]  # type: ignore[call-overload]
            outputs.append([TimedText(normalize(chunk["text"]), *chunk["timestamp"]) for chunk in chunks])
        return outputs

    inserted = {}
    for kind, sounds in sounds_without_speech(extractor.chunk_length).items():
        texts, *_ = transcribe_batch(model, processor, sounds)
        inserted[kind] = sum(len(normalize(text).split()) for text in texts)
    languages = translations = None
    if multilingual:
        languages, translations = [""] * len(clips), [""] * len(clips)
        names = {token: name.strip("<|>") for name, token in settings.lang_to_id.items()}
        for indices in batches_by_length(clips, extractor, batch_size):
            batch = [clips[index] for index in indices]
            features = extractor([clip.samples for clip in batch], sampling_rate=SAMPLING_RATE, return_tensors="pt")
            detected = model.detect_language(features.input_features.to(model.device, model.dtype)).tolist()
            texts, *_ = transcribe_batch(model, processor, batch, DecodingOptions(task="translate"))
            for index, token, text in zip(indices, detected, texts, strict=True):
                languages[index], translations[index] = names[token], normalize(text)
    segments = timed_texts(True)
    words = timed_texts("word") if getattr(settings, "alignment_heads", None) else None
    return RobustnessOutputs(words, segments, inserted, languages, translations)


def timestamp_shifts(outputs: Sequence[Sequence[TimedText]], base: Sequence[Sequence[TimedText]]) -> np.ndarray:
    """Absolute differences, in seconds, between the timestamps of matching texts; shape `(timestamps,)`."""
    shifts = []
    for ours, theirs in zip(outputs, base, strict=True):
        matcher = difflib.SequenceMatcher(
            None, [item.text for item in ours], [item.text for item in theirs], autojunk=False
        )
        for block in matcher.get_matching_blocks():
            for offset in range(block.size):
                one, other = ours[block.a + offset], theirs[block.b + offset]
                shifts.append(abs(one.start - other.start))
                if one.end is not None and other.end is not None:
                    shifts.append(abs(one.end - other.end))
    return np.array(shifts)


def compare(outputs: RobustnessOutputs, base: RobustnessOutputs) -> Row:
    """
    Compares the outputs of a model with those of its base model.

    Returns:
        `Row`: median and 95th percentile of the shifts of word and segment timestamps, in seconds; number of words
        transcribed from each kind of sound without speech; percentage of clips with another detected language; word
        error rate of the translations against those of the base model, in per cent. `None` if there is nothing to
        compare.
    """
    row: Row = {}
    for kind, ours, theirs in (("word", outputs.words, base.words), ("segment", outputs.segments, base.segments)):
        shifts = timestamp_shifts(ours, theirs) if ours is not None and theirs is not None else np.array([])
        for name, percentile in (("median", 50), ("p95", 95)):
            row[f"{kind}_shift_{name}"] = float(np.percentile(shifts, percentile)) if len(shifts) else None
    row |= {f"words_in_{kind}": count for kind, count in outputs.inserted.items()}
    row["other_language"] = row["translation_wer"] = None
    if outputs.languages is not None and base.languages is not None:
        other = [one != two for one, two in zip(outputs.languages, base.languages, strict=True)]
        row["other_language"] = 100 * sum(other) / len(other)
    if outputs.translations is not None and base.translations is not None and any(map(str.split, base.translations)):
        row["translation_wer"] = error_rates(base.translations, outputs.translations).wer
    return row


def robustness(settings: EvaluationSettings) -> dict[str, Row]:
    """Compares every model with the first one on the first clips of each dataset; returns the rows by model name."""
    clips = [
        clip for source in settings.dataset for clip in itertools.islice(AudioDataset([source]), CLIPS_PER_DATASET)
    ]
    rows = {}
    base = None
    for model_name, name in zip(settings.models, settings.names, strict=True):
        model, processor = load_model(model_name)
        device = available_device(settings.device)
        model.to(device=device, dtype=getattr(torch, settings.dtype))  # type: ignore[call-arg]
        normalize = text_normalizer(settings.normalizer, processor.tokenizer)
        outputs = collect_outputs(model.eval(), processor, clips, normalize, settings.batch_size)
        base = base or outputs
        rows[name] = compare(outputs, base)
    return rows
