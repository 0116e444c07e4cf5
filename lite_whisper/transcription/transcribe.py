"""Any number of recordings in, transcripts out: the model, what an interrupted run goes on from, and the output."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..audio import AudioDataset, Clip
from ..common.errors import InputError
from ..common.files import record_origin, unfinished
from ..common.processes import available_device
from ..models.folders import check_language, fingerprint, load_model
from .output import Output
from .recognizers import Backend, Computing, load_recognizer
from .transcriber import Timestamps, Transcriber, pipeline_options, read_transcripts, transcribe_recordings


@dataclass(frozen=True)
class TranscriptionSettings:
    """
    Which recordings are transcribed, and how.

    Args:
        sources (`Sequence[str]`): files, folders, patterns such as `calls/**/*.wav`, or Hub datasets.
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Output`): where the transcripts go.
        overwrite (`bool`): whether a file there is replaced.
        timestamps (`str`): of the segments: `"none"`, `"segment"` or `"word"`.
        language (`str`, *optional*): that is spoken, such as `"de"`; by default the model detects it.
        task (`str`): `"transcribe"` or `"translate"`.
        num_beams (`int`): 1 is greedy.
        batch_size (`int`): windows that run at once.
        device (`str`, *optional*): to run on; cuda where there is a GPU by default.
        dtype (`str`): to compute in: `"float32"`, `"float16"`, `"bfloat16"` or `"int8"`.
        backend (`str`): what computes: `"transformers"`, `"ctranslate2"`, or `"auto"`, the faster of the two for the
            first recording if both write the same text.
        sequential (`bool`): whether recordings longer than a window run uncut, one by one, in Whisper's own decoding.
        ray (`bool`): whether the work is sharded over the devices of a Ray cluster.

    Raises:
        InputError: subtitles are wanted without times, or the backend cannot do what is wanted.
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
            raise InputError("subtitles have times; do not leave them out", setting="timestamps")
        if self.backend != "transformers" and (self.timestamps == "word" or self.sequential):
            raise InputError("words have times, and recordings stay uncut, with transformers alone", setting="backend")


@dataclass(frozen=True)
class TranscriptionSummary:
    """
    How many recordings were transcribed, of these how many in a second try, and how many could not be read.

    `choice` says which backend was taken and why, where it was to be chosen.
    """

    transcribed: int
    failed: int
    fallbacks: int
    backend_choice: str = ""


def transcribe_to_output(settings: TranscriptionSettings) -> TranscriptionSummary:
    """
    Transcribes recordings and writes the result; an interrupted run goes on when it is called again.

    Args:
        settings (`TranscriptionSettings`): which recordings, and how.

    Raises:
        InputError: the output exists, the model or a source cannot be used, or not one recording could be read.
    """
    sources = expanded(settings.sources)
    settings.output.check(sources, settings.overwrite)
    model, processor = load_model(settings.model)
    check_language(settings.language, model, settings.model)
    decisive = {
        "model": fingerprint(model),
        "sources": list(settings.sources),
        **{name: getattr(settings, name) for name in ("language", "task", "num_beams", "timestamps", "dtype")},
        **{name: getattr(settings, name) for name in ("batch_size", "backend", "sequential")},
    }
    choice = ""
    with unfinished(settings.output.path) as work:
        record_origin(work, decisive)
        lines = work / "transcripts.jsonl"
        if settings.ray:
            from .cluster import transcribe_on_cluster  # Ray need not be installed

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
            raise InputError(f"none of the {len(outcomes)} recordings could be read, the first because it {failed[0]}")
        settings.output.write(lines)
    fallbacks = sum(fallback for _, fallback in outcomes)
    return TranscriptionSummary(len(outcomes) - len(failed), len(failed), fallbacks, choice)


def expanded(sources: Sequence[str]) -> list[str]:
    """
    The sources with patterns replaced by the files that match.

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
            raise InputError(f"no file matches {source}")
        names += matching
    return names


def files_matching(pattern: Path) -> list[str]:
    """The files that match; `**` follows no links to folders, as glob.glob does, even where they lead in circles."""
    pattern = pattern / "*" if pattern.name == "**" else pattern
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(str(path) for path in found if path.is_file() and not path.name.startswith("."))


def make_transcriber(
    settings: TranscriptionSettings, model: WhisperForConditionalGeneration, processor: WhisperProcessor, device: str
) -> tuple[Transcriber, str]:
    """The model on a device, ready to transcribe as the settings say, and why by that backend."""
    generate_kwargs: dict[str, Any] = {"num_beams": settings.num_beams}
    if getattr(model.generation_config, "is_multilingual", False):
        generate_kwargs |= {"task": settings.task, "language": settings.language}
    computing = Computing(settings.backend, settings.dtype, device, settings.batch_size)
    first = partial(first_clip, settings.sources, processor.feature_extractor.n_samples)
    options = pipeline_options(settings.timestamps, generate_kwargs)
    recognizer, choice = load_recognizer(model, processor, computing, first, options)
    return Transcriber(recognizer, settings.batch_size, options, settings.sequential), choice


def first_clip(sources: Sequence[str], longest: int) -> Clip | None:
    """Of the first recording that can be read, so many samples at the most."""
    for entry in AudioDataset(expanded(sources)).entries():
        try:
            clip = entry.read()
        except (InputError, OSError):
            continue  # whoever transcribes it says why
        return Clip(clip.name, clip.samples[:longest])
    return None


def load_transcriber(settings: TranscriptionSettings, device: str) -> Transcriber:
    """Loads the model that the settings name; in an actor of a cluster."""
    return make_transcriber(settings, *load_model(settings.model), device)[0]
