"""Two Whisper models on the same clip, in turn: what each writes, and the seconds that it takes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lite_whisper.audio import Clip, Entry, decode
from lite_whisper.common.errors import InputError
from lite_whisper.common.processes import available_device
from lite_whisper.models.folders import load_model
from lite_whisper.serving.batches import Batches, DecodingOptions
from lite_whisper.serving.fields import Capabilities
from lite_whisper.transcription.formats import Transcript
from lite_whisper.transcription.recognizers import Computing, load_recognizer
from lite_whisper.transcription.transcriber import Recording, pipeline_options

LONGEST = 60  # seconds of a clip, for which others wait
ACCEPTED = f"WAV, FLAC, Ogg or MP3, {LONGEST} seconds at the most"
TURNS = 3  # of which the first does not count


@dataclass(frozen=True)
class Outcome:
    """
    What a model made of a clip.

    Args:
        transcript (`Transcript`): what it wrote.
        seconds (`float`): that it took in the faster of the turns that count.
        real_time_factor (`float`): seconds for each second of audio.
    """

    transcript: Transcript
    seconds: float
    real_time_factor: float


def load(name: str) -> tuple[Batches, Capabilities]:
    """
    A model that transcribes one clip at a time, in fp32: a compressed one in its inference mode, a stock one as it is.

    Args:
        name (`str`): Hub id or folder of a Whisper, compressed or not.

    Returns:
        `tuple[Batches, Capabilities]`: the model, and what can be asked of it.

    Raises:
        InputError: there is no such model, or its files are damaged.
    """
    model, processor = load_model(name)
    computing = Computing("transformers", "float32", available_device(None), batch_size=1)
    recognizer, _ = load_recognizer(model, processor, computing, lambda: None, pipeline_options())
    return Batches(recognizer, batch_size=1), Capabilities.of(name, model, computing.backend)


def read(file: str | None, window: float) -> Recording:
    """
    Reads a clip.

    Args:
        file (`str`, *optional*): its path, if there is a clip.
        window (`float`): seconds of the models' window.

    Raises:
        InputError: there is none, or it cannot be decoded, is empty, or longer than `LONGEST`.
    """
    if file is None:
        raise InputError(f"There is no audio yet. Choose a file ({ACCEPTED}), or record something.")
    try:
        clip = Clip("clip", decode(file, LONGEST))
    except InputError as error:
        raise InputError(f"The file {error}. Give {ACCEPTED}.") from error
    return Recording.of(0, Entry(clip.name, lambda: file, None, clip.name), clip, window)


def compare(models: Mapping[str, Batches], file: str | None, decoding: DecodingOptions) -> dict[str, Outcome]:
    """
    Lets models transcribe the same clip several times, in turn.

    In the first turn memory is taken and kernels are chosen for this length of audio, so it does not count. In each
    turn another model begins, so that none always comes after the other.

    Args:
        models (`Mapping[str, Batches]`): by the names under which the outcomes come back.
        file (`str`, *optional*): the path of the clip.
        decoding (`DecodingOptions`): how it is decoded.

    Raises:
        InputError: the clip cannot be used.
    """
    recording = read(file, min(model.window for model in models.values()))
    transcripts: dict[str, Transcript] = {}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(TURNS):
        for name in models if turn % 2 == 0 else reversed(list(models)):
            start = time.perf_counter()
            transcripts[name], _ = models[name].submit(recording, decoding).result()
            seconds[name].append(time.perf_counter() - start)
    fastest = {name: min(seconds[name][1:]) for name in models}
    return {name: Outcome(transcripts[name], fastest[name], fastest[name] / recording.duration) for name in models}


def verdict(stock: Outcome, compressed: Outcome) -> str:
    """How the two outcomes differ, in one line."""
    texts = "The same text" if stock.transcript.text == compressed.transcript.text else "The texts differ"
    return f"{texts}. The compressed model is {stock.seconds / compressed.seconds:.2f} times as fast."


def rows(transcript: Transcript) -> list[list[str]]:
    """The segments as rows of a table: from, to, text. One of unknown end lasts to that of the clip."""
    ends = [transcript.duration if segment.end is None else segment.end for segment in transcript.segments]
    return [
        [f"{segment.start:.2f}", f"{end:.2f}", segment.text]
        for segment, end in zip(transcript.segments, ends, strict=True)
    ]
