"""What compression may break without an error rate telling: timestamps, silence, languages, translation."""

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

CLIPS = 50  # of each set
WINDOWS = 8  # of each kind of sound without speech
AMPLITUDE = 0.05


Row = dict[str, float | int | None]
"""How a model differs from its base, by figure; None where there is nothing to compare."""


@dataclass(frozen=True)
class Piece:
    """
    A word or segment with its boundaries.

    Args:
        text (`str`): normalised.
        start (`float`): in seconds.
        end (`float`, *optional*): in seconds; `None` where it was not heard.
    """

    text: str
    start: float
    end: float | None


@dataclass
class Observation:
    """
    What one model made of the clips.

    Args:
        words (`list[list[Piece]]`, *optional*): one list for each clip; `None` where the model has no alignment heads.
        segments (`list[list[Piece]]`): one list for each clip.
        inserted (`dict[str, int]`): words that it wrote for each kind of sound without speech, by kind.
        languages (`list[str]`, *optional*): one for each clip; `None` for an English-only model.
        translations (`list[str]`, *optional*): likewise.
    """

    words: list[list[Piece]] | None
    segments: list[list[Piece]]
    inserted: dict[str, int]
    languages: list[str] | None
    translations: list[str] | None


def without_speech(seconds: float, seed: int = 0) -> dict[str, list[Clip]]:
    """Silence, white noise, and the hum of the mains; clips of a length."""
    generator = np.random.default_rng(seed)
    count = int(seconds * SAMPLING_RATE)
    time = np.arange(count) / SAMPLING_RATE
    sounds: dict[str, Callable[[], np.ndarray]] = {
        "silence": lambda: np.zeros(count),
        "noise": lambda: AMPLITUDE * generator.standard_normal(count),
        "hum": lambda: AMPLITUDE * np.sin(2 * np.pi * 50 * time + generator.uniform(0, 2 * np.pi)),
    }
    return {name: [Clip(name, sound().astype(np.float32)) for _ in range(WINDOWS)] for name, sound in sounds.items()}


def observe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    normalize: Callable[[str], str],
    batch_size: int = 8,
) -> Observation:
    """
    Lets a model transcribe clips with timestamps, sounds without speech, detect languages, and translate.

    For word timestamps transformers switches the model to its eager attention, for good: take a model of its own.
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

    def pieces(kind: bool | str) -> list[list[Piece]]:
        found = []
        for clip in tqdm(clips, "timestamps", unit="clip"):
            heard = recognizer(
                {"raw": clip.samples, "sampling_rate": SAMPLING_RATE}, return_timestamps=kind, generate_kwargs=options
            )
            chunks: list[dict[str, Any]] = heard["chunks"]  # type: ignore[call-overload]
            found.append([Piece(normalize(chunk["text"]), *chunk["timestamp"]) for chunk in chunks])
        return found

    inserted = {}
    for kind, sounds in without_speech(extractor.chunk_length).items():
        texts, *_ = transcribe_batch(model, processor, sounds)
        inserted[kind] = sum(len(normalize(text).split()) for text in texts)
    languages = translations = None
    if multilingual:
        languages, translations = [""] * len(clips), [""] * len(clips)
        names = {token: name.strip("<|>") for name, token in settings.lang_to_id.items()}
        for places in batches_by_length(clips, extractor, batch_size):
            batch = [clips[place] for place in places]
            features = extractor([clip.samples for clip in batch], sampling_rate=SAMPLING_RATE, return_tensors="pt")
            detected = model.detect_language(features.input_features.to(model.device, model.dtype)).tolist()
            texts, *_ = transcribe_batch(model, processor, batch, DecodingOptions(task="translate"))
            for place, token, text in zip(places, detected, texts, strict=True):
                languages[place], translations[place] = names[token], normalize(text)
    segments = pieces(True)
    words = pieces("word") if getattr(settings, "alignment_heads", None) else None
    return Observation(words, segments, inserted, languages, translations)


def shifts(found: Sequence[Sequence[Piece]], base: Sequence[Sequence[Piece]]) -> np.ndarray:
    """How far the boundaries of pieces with the same text lie apart in seconds, of shape `(boundaries,)`."""
    apart = []
    for ours, theirs in zip(found, base, strict=True):
        matcher = difflib.SequenceMatcher(None, [p.text for p in ours], [p.text for p in theirs], autojunk=False)
        for block in matcher.get_matching_blocks():
            for offset in range(block.size):
                one, other = ours[block.a + offset], theirs[block.b + offset]
                apart.append(abs(one.start - other.start))
                if one.end is not None and other.end is not None:
                    apart.append(abs(one.end - other.end))
    return np.array(apart)


def compare(found: Observation, base: Observation) -> Row:
    """
    How a model differs from its base.

    Returns:
        `Row`: shifts of the boundaries of words and segments in seconds, median and 95th percentile; words written for
        each kind of sound without speech; percentage of clips whose language is another, and word error rate in per
        cent of the translations against the base model's. `None` where there is nothing to compare.
    """
    row: Row = {}
    for kind, ours, theirs in (("word", found.words, base.words), ("segment", found.segments, base.segments)):
        apart = shifts(ours, theirs) if ours is not None and theirs is not None else np.array([])
        for name, percentile in (("median", 50), ("p95", 95)):
            row[f"{kind}_shift_{name}"] = float(np.percentile(apart, percentile)) if len(apart) else None
    row |= {f"words_in_{kind}": count for kind, count in found.inserted.items()}
    row["other_language"] = row["translation_wer"] = None
    if found.languages is not None and base.languages is not None:
        other = [one != two for one, two in zip(found.languages, base.languages, strict=True)]
        row["other_language"] = 100 * sum(other) / len(other)
    if found.translations is not None and base.translations is not None and any(map(str.split, base.translations)):
        row["translation_wer"] = error_rates(base.translations, found.translations).wer
    return row


def robustness(settings: EvaluationSettings) -> dict[str, Row]:
    """Every model against the first one on the first clips of each set, by name."""
    clips = [clip for source in settings.dataset for clip in itertools.islice(AudioDataset([source]), CLIPS)]
    rows = {}
    base = None
    for model_name, name in zip(settings.models, settings.names, strict=True):
        model, processor = load_model(model_name)
        device = available_device(settings.device)
        model.to(device=device, dtype=getattr(torch, settings.dtype))  # type: ignore[call-arg]
        normalize = text_normalizer(settings.normalizer, processor.tokenizer)
        found = observe(model.eval(), processor, clips, normalize, settings.batch_size)
        base = base or found
        rows[name] = compare(found, base)
    return rows
