"""The fields of a form in, what is asked for out; whatever cannot be done is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from .batches import RequestOptions, Task
from .errors import RequestError

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = "timestamp_granularities"
FIELDS = ("file", "model", "language", "prompt", "response_format", "temperature", "stream", GRANULARITIES)
USUAL_NAME = "whisper-1"  # OpenAI's, which many programs ask for whatever the server


@dataclass(frozen=True)
class Capabilities:
    """
    What can be asked of a model.

    Args:
        name (`str`): by which it is served.
        languages (`frozenset[str]`): codes of those that it knows.
        translates (`bool`): whether it translates into English.
        words (`bool`): whether it knows the times of words.
        prompts (`bool`): whether the backend takes prompts, and temperatures above 0.
    """

    name: str
    languages: frozenset[str]
    translates: bool
    words: bool
    prompts: bool

    @classmethod
    def of(cls, name: str, model: WhisperForConditionalGeneration, backend: str) -> "Capabilities":
        """Those of a model, given its Hub id or folder, with a backend."""
        settings: Any = model.generation_config
        multilingual = getattr(settings, "is_multilingual", False)
        known = [token.strip("<|>") for token in settings.lang_to_id] if multilingual else ["en"]
        transformers = backend == "transformers"
        words = transformers and bool(getattr(settings, "alignment_heads", None))
        served = Path(name).resolve().name if Path(name).is_dir() else name  # where it lies is nobody's business
        return cls(served, frozenset(known), multilingual, words, transformers)


@dataclass(frozen=True)
class TranscriptionRequest:
    """
    What a request asks for.

    Args:
        decoding (`RequestOptions`): how its audio is to be decoded.
        response_format (`str`): of the answer, one of `RESPONSE_FORMATS`.
        stream (`bool`): whether the answer is a stream of events.
    """

    decoding: RequestOptions
    response_format: str
    stream: bool

    @property
    def names_language(self) -> bool:
        """Whether the answer says which language is spoken."""
        return self.response_format == "verbose_json" and self.decoding.task == "transcribe"


def asked(fields: Sequence[tuple[str, str]], task: Task, capabilities: Capabilities) -> TranscriptionRequest:
    """
    What the fields of a form ask for.

    Args:
        fields (`Sequence[tuple[str, str]]`): names and values, as they came.
        task (`str`): of the endpoint, `"transcribe"` or `"translate"`.
        capabilities (`Capabilities`): of the model.

    Raises:
        RequestError: a field is unknown, or asks for what the model cannot do; none is ignored.
    """
    values: dict[str, str] = {}
    granularities = []
    for name, value in fields:
        known = name.removesuffix("[]")
        if known not in FIELDS:
            raise RequestError(400, f"there is no field {name} here; leave it out, known are {', '.join(FIELDS)}", name)
        if known == GRANULARITIES:
            granularities.append(value)
        elif value.strip():
            values[known] = value.strip()
    if values.get("model", capabilities.name) not in (capabilities.name, USUAL_NAME):
        raise RequestError(404, f"{values['model']} is not served here; ask for {capabilities.name}", "model")
    if task == "translate" and not capabilities.translates:
        raise RequestError(
            400, f"{capabilities.name} knows English only and does not translate; use transcriptions", "model"
        )
    response_format = _one_of("response_format", values.get("response_format", "json"), RESPONSE_FORMATS)
    stream = _one_of("stream", values.get("stream", "false").lower(), ("true", "false")) == "true"
    if stream and response_format not in ("json", "text"):
        raise RequestError(
            400, f"{response_format} cannot be streamed; ask for json or text, or leave stream out", "stream"
        )
    temperature = _temperature(values.get("temperature", "0"))
    for name, wanted in (("prompt", "prompt" in values), ("temperature", temperature > 0)):
        if wanted and not capabilities.prompts:
            raise RequestError(400, f"this server's backend takes no {name}; leave it out", name)
    timestamps: Any = _timestamps(response_format, granularities, capabilities)
    language = _language(values["language"], capabilities) if "language" in values else None
    return TranscriptionRequest(
        RequestOptions(task, language, timestamps, values.get("prompt"), temperature), response_format, stream
    )


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise RequestError(400, f"{name} cannot be {value!r}; it is {', '.join(known[:-1])} or {known[-1]}", name)
    return value


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise RequestError(400, f"temperature cannot be {text!r}; it is a number from 0 to 1", "temperature")
    return number


def _timestamps(response_format: str, granularities: Sequence[str], capabilities: Capabilities) -> str:
    for each in granularities:
        _one_of(GRANULARITIES, each, ("segment", "word"))
    if granularities and response_format != "verbose_json":
        raise RequestError(
            400, f"{response_format} has no {GRANULARITIES}; set response_format to verbose_json", GRANULARITIES
        )
    if len(set(granularities)) > 1:
        raise RequestError(
            400, "segments and words cannot be had at once; ask for them one after the other", GRANULARITIES
        )
    if "word" in granularities and not capabilities.words:
        raise RequestError(400, "the times of words are not known here; ask for those of segments", GRANULARITIES)
    if response_format in ("json", "text"):
        return "none"
    return granularities[0] if granularities else "segment"


def _language(text: str, capabilities: Capabilities) -> str:
    """The code of a language from its code or its English name."""
    code = TO_LANGUAGE_CODE.get(text.lower(), text.lower())
    if code not in capabilities.languages:
        known = "English only" if capabilities.languages == {"en"} else "such as de or german"
        raise RequestError(400, f"{text!r} is not a language that {capabilities.name} knows, {known}", "language")
    return code
