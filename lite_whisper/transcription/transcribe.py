"""Runs `lite-whisper transcribe`: loads the model, resumes an interrupted run, and writes the output."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import AudioDataset, Clip
from ..common.errors import InputError
from ..common.files import record_origin, working_folder
from ..common.processes import available_device
from ..models.folders import check_language, fingerprint, load_model
from .output import Output
from .recognizers import Backend, ComputeSettings, load_recognizer
from .transcriber import Timestamps, Transcriber, pipeline_options, read_transcripts, transcribe_recordings


@dataclass(frozen=True)
class TranscriptionSettings:
    """
    Settings of a transcription.

    Args:
        sources (`Sequence[str]`): files, folders, patterns such as `calls/**/*.wav`, or Hub datasets.
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Output`): destination and format of the transcripts.
        overwrite (`bool`): whether to replace an existing output file.
        timestamps (`str`): granularity of the timestamps: `"none"`, `"segment"` or `"word"`.
        language (`str`, *optional*): language spoken in the audio, such as `"de"`; detected by default.
        task (`str`): `"transcribe"` or `"translate"`.
        num_beams (`int`): number of beams; 1 decodes greedily.
        batch_size (`int`): windows per batch.
        device (`str`, *optional*): device to run on; by default cuda if there is a GPU.
        dtype (`str`): dtype to compute in: `"float32"`, `"float16"`, `"bfloat16"` or `"int8"`.
        backend (`str`): engine: `"transformers"`, `"ctranslate2"`, or `"auto"`, the faster of the two on the first
            recording if both give the same text.
        sequential (`bool`): whether to decode recordings longer than a window sequentially, without splitting them.
        ray (`bool`): whether to distribute the work over the devices of a Ray cluster.

    Raises:
        InputError: the output needs timestamps that are switched off, or the backend does not support the settings.
    """

    sources: Sequence[str]
    model: str
    output: Output
    overwrite: bool = False
    timestamps: Timestamps = "segment"
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    num_beams: int = 1
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"
    backend: Backend = "transformers"
    sequential: bool = False
    ray: bool = False

    def __post_init__(self) -> None:
        if self.output.format in ("srt", "vtt") and self.timestamps == "none":
            raise InputError("subtitles need timestamps; choose segment or word", setting="timestamps")
        if self.backend != "transformers" and (self.timestamps == "word" or self.sequential):
            raise InputError(
                "word timestamps and sequential decoding require the transformers backend", setting="backend"
            )


@dataclass(frozen=True)
class TranscriptionSummary:
    """
    Summary of a transcription.

    Args:
        transcribed (`int`): recordings transcribed.
        failed (`int`): recordings that could not be read.
        fallbacks (`int`): recordings decoded again with all positions computed.
        backend_choice (`str`): with the backend `"auto"`, which one was chosen and why.
    """

    transcribed: int
    failed: int
    fallbacks: int
    backend_choice: str = ""


def transcribe_to_output(settings: TranscriptionSettings) -> TranscriptionSummary:
    """
    Transcribes recordings and writes the output. If interrupted, calling it again resumes the run.

    Args:
        settings (`TranscriptionSettings`): recordings, model, output and options.

    Raises:
        InputError: the output exists, the model or a source cannot be used, or no recording could be read.
    """
    sources = expand_patterns(settings.sources)
    settings.output.check(sources, settings.overwrite)
    model, processor = load_model(settings.model)
    check_language(settings.language, model, settings.model)
    origin = {
        "model": fingerprint(model),
        "sources": list(settings.sources),
        **{name: getattr(settings, name) for name in ("language", "task", "num_beams", "timestamps", "dtype")},
        **{name: getattr(settings, name) for name in ("batch_size", "backend", "sequential")},
    }
    choice = ""
    with working_folder(settings.output.path) as work:
        record_origin(work, origin)
        lines = work / "transcripts.jsonl"
        if settings.ray:
            from .cluster import transcribe_on_cluster  # Ray is optional

            on_gpus = None if settings.device is None else settings.device != "cpu"
            transcribe_on_cluster(partial(load_transcriber, settings), sources, lines, on_gpus)
        else:
            entries = AudioDataset(sources).entries()
            device = available_device(settings.device)
            transcriber, choice = make_transcriber(settings, model, processor, device)
            transcribe_recordings(transcriber, entries, lines)
        outcomes = [(transcript.error, transcript.fallback) for transcript in read_transcripts(lines)]
        failed = [error for error, _ in outcomes if error]
        if len(failed) == len(outcomes):
            raise InputError(f"none of the {len(outcomes)} recordings could be read; the first one {failed[0]}")
        settings.output.write(lines)
    fallbacks = sum(fallback for _, fallback in outcomes)
    return TranscriptionSummary(len(outcomes) - len(failed), len(failed), fallbacks, choice)


def expand_patterns(sources: Sequence[str]) -> list[str]:
    """
    Replaces patterns among the sources by the files that match.

    Raises:
        InputError: a pattern matches nothing.
    """
    names: list[str] = []
    for source in sources:
        if Path(source).exists() or not glob.has_magic(source):
            names.append(source)
            continue
        matching = files_matching(Path(source))
        if not matching:
            raise InputError(f"no file matches {source}; check the pattern")
        names += matching
    return names


def files_matching(pattern: Path) -> list[str]:
    """Lists the files that match. Unlike in `glob.glob`, `**` does not follow links to folders, which may be cyclic."""
    pattern = pattern / "*" if pattern.name == "**" else pattern
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(str(path) for path in found if path.is_file() and not path.name.startswith("."))


def make_transcriber(
    settings: TranscriptionSettings, model: WhisperForConditionalGeneration, processor: WhisperProcessor, device: str
) -> tuple[Transcriber, str]:
    """Prepares a model on a device for the given settings; also returns the reason for the choice of backend."""
    generate_kwargs: dict[str, Any] = {"num_beams": settings.num_beams}
    if getattr(model.generation_config, "is_multilingual", False):
        generate_kwargs |= {"task": settings.task, "language": settings.language}
    compute = ComputeSettings(settings.backend, settings.dtype, device, settings.batch_size)
    read_first = partial(first_clip, settings.sources, processor.feature_extractor.n_samples)
    options = pipeline_options(settings.timestamps, generate_kwargs)
    recognizer, choice = load_recognizer(model, processor, compute, read_first, options)
    return Transcriber(recognizer, settings.batch_size, options, settings.sequential), choice


def first_clip(sources: Sequence[str], max_length: int) -> Clip | None:
    """The first `max_length` samples of the first readable recording."""
    for entry in AudioDataset(expand_patterns(sources)).entries():
        try:
            clip = entry.read()
        except (InputError, OSError):
            continue  # reported when it is transcribed
        return Clip(clip.name, clip.samples[:max_length])
    return None


def load_transcriber(settings: TranscriptionSettings, device: str) -> Transcriber:
    """Loads the model of the settings on a device; called by the actors of a cluster."""
    return make_transcriber(settings, *load_model(settings.model), device)[0]
