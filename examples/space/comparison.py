"""Compares the transcripts and the speed of two Whisper models on the same clip."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lite_whisper.audio import Clip, Entry, decode
from lite_whisper.common.errors import InputError
from lite_whisper.common.processes import available_device
from lite_whisper.models.folders import load_model
from lite_whisper.serving.batches import Batches, RequestOptions
from lite_whisper.serving.request_fields import Capabilities
from lite_whisper.transcription.formats import Transcript
from lite_whisper.transcription.recognizers import ComputeSettings, load_recognizer
from lite_whisper.transcription.transcriber import Recording, pipeline_options

MAX_SECONDS = 60  # of a clip; other visitors wait meanwhile
ACCEPTED = f"WAV, FLAC, Ogg or MP3, at most {MAX_SECONDS} seconds"
ROUNDS = 3  # the first is a warm-up


@dataclass(frozen=True)
class Outcome:
    """
    A model's transcript of a clip and its speed.

    Args:
        transcript (`Transcript`): the transcript.
        seconds (`float`): the time it took, in the fastest round after the warm-up.
        real_time_factor (`float`): seconds of computation per second of audio.
    """

    transcript: Transcript
    seconds: float
    real_time_factor: float


def load(name: str) -> tuple[Batches, Capabilities]:
    """
    Loads a model that transcribes one clip at a time in float32, with optimised inference if it is compressed.

    Args:
        name (`str`): Hub id or folder of a Whisper, compressed or not.

    Returns:
        `tuple[Batches, Capabilities]`: the model and its features.

    Raises:
        InputError: the model does not exist, or its files are damaged.
    """
    model, processor = load_model(name)
    compute = ComputeSettings("transformers", "float32", available_device(None), batch_size=1)
    recognizer, _ = load_recognizer(model, processor, compute, lambda: None, pipeline_options())
    return Batches(recognizer, batch_size=1), Capabilities.from_model(name, model, compute.backend)


def read(file: str | None, window: float) -> Recording:
    """
    Reads a clip.

    Args:
        file (`str`, *optional*): path of the clip.
        window (`float`): length of the models' window in seconds.

    Raises:
        InputError: there is no clip, or it cannot be decoded, is empty, or is longer than `MAX_SECONDS`.
    """
    if file is None:
        raise InputError(f"There is no audio yet. Choose a file ({ACCEPTED}), or record something.")
    try:
        clip = Clip("clip", decode(file, MAX_SECONDS))
    except InputError as error:
        raise InputError(f"The file {error}. Provide {ACCEPTED}.") from error
    return Recording.from_entry(0, Entry(clip.name, lambda: file, None, clip.name), clip, window)


def compare(models: Mapping[str, Batches], file: str | None, options: RequestOptions) -> dict[str, Outcome]:
    """
    Transcribes a clip several times with each model, in alternation.

    The first round does not count: it allocates memory and selects kernels for this length of audio. The order of the
    models changes every round.

    Args:
        models (`Mapping[str, Batches]`): the models by name.
        file (`str`, *optional*): path of the clip.
        options (`RequestOptions`): decoding options.

    Returns:
        `dict[str, Outcome]`: the outcomes by the names of the models.

    Raises:
        InputError: the clip cannot be used.
    """
    recording = read(file, min(model.window for model in models.values()))
    transcripts: dict[str, Transcript] = {}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(ROUNDS):
        for name in models if round_number % 2 == 0 else reversed(list(models)):
            start = time.perf_counter()
            transcripts[name], _ = models[name].submit(recording, options).result()
            seconds[name].append(time.perf_counter() - start)
    fastest = {name: min(seconds[name][1:]) for name in models}
    return {name: Outcome(transcripts[name], fastest[name], fastest[name] / recording.duration) for name in models}


def verdict(stock: Outcome, compressed: Outcome) -> str:
    """Summarises the difference between two outcomes in one line."""
    texts = "The same text" if stock.transcript.text == compressed.transcript.text else "The texts differ"
    return f"{texts}. The compressed model is {stock.seconds / compressed.seconds:.2f} times as fast."


def rows(transcript: Transcript) -> list[list[str]]:
    """Converts segments to table rows: start, end, text. A segment without an end lasts until the end of the clip."""
    ends = [transcript.duration if segment.end is None else segment.end for segment in transcript.segments]
    return [
        [f"{segment.start:.2f}", f"{end:.2f}", segment.text]
        for segment, end in zip(transcript.segments, ends, strict=True)
    ]
