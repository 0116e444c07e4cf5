"""Parses the form fields of a request; unknown fields and unsupported values are rejected."""

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
OPENAI_MODEL = "whisper-1"  # OpenAI's, which many clients send to any server


@dataclass(frozen=True)
class Capabilities:
    """
    The features that a served model supports.

    Args:
        name (`str`): name under which the model is served.
        languages (`frozenset[str]`): codes of the supported languages.
        translates (`bool`): whether the model translates into English.
        word_timestamps (`bool`): whether word timestamps are available.
        prompts (`bool`): whether the backend supports prompts and temperatures above 0.
    """

    name: str
    languages: frozenset[str]
    translates: bool
    word_timestamps: bool
    prompts: bool

    @classmethod
    def from_model(cls, name: str, model: WhisperForConditionalGeneration, backend: str) -> "Capabilities":
        """Determines the features of a model, given its Hub id or folder, with a backend."""
        generation_config: Any = model.generation_config
        multilingual = getattr(generation_config, "is_multilingual", False)
        languages = [token.strip("<|>") for token in generation_config.lang_to_id] if multilingual else ["en"]
        transformers = backend == "transformers"
        word_timestamps = transformers and bool(getattr(generation_config, "alignment_heads", None))
        public_name = Path(name).resolve().name if Path(name).is_dir() else name  # do not expose the local path
        return cls(public_name, frozenset(languages), multilingual, word_timestamps, transformers)


@dataclass(frozen=True)
class TranscriptionRequest:
    """
    A parsed request.

    Args:
        options (`RequestOptions`): decoding options.
        response_format (`str`): format of the response, one of `RESPONSE_FORMATS`.
        stream (`bool`): whether to respond with a stream of events.
    """

    options: RequestOptions
    response_format: str
    stream: bool

    @property
    def needs_language(self) -> bool:
        """Whether the response includes the language."""
        return self.response_format == "verbose_json" and self.options.task == "transcribe"


def parse_request(fields: Sequence[tuple[str, str]], task: Task, capabilities: Capabilities) -> TranscriptionRequest:
    """
    Parses the form fields of a request.

    Args:
        fields (`Sequence[tuple[str, str]]`): names and values, as received.
        task (`str`): task of the endpoint, `"transcribe"` or `"translate"`.
        capabilities (`Capabilities`): features of the model.

    Raises:
        RequestError: a field is unknown, or its value is invalid or not supported by the model.
    """
    values: dict[str, str] = {}
    granularities = []
    for name, value in fields:
        field = name.removesuffix("[]")
        if field not in FIELDS:
            raise RequestError(400, f"unknown field {name}; supported fields: {', '.join(FIELDS)}", name)
        if field == GRANULARITIES:
            granularities.append(value)
        elif value.strip():
            values[field] = value.strip()
    if values.get("model", capabilities.name) not in (capabilities.name, OPENAI_MODEL):
        raise RequestError(404, f"unknown model {values['model']}; this server provides {capabilities.name}", "model")
    if task == "translate" and not capabilities.translates:
        raise RequestError(
            400, f"{capabilities.name} is English-only and cannot translate; use /v1/audio/transcriptions", "model"
        )
    response_format = _one_of("response_format", values.get("response_format", "json"), RESPONSE_FORMATS)
    stream = _one_of("stream", values.get("stream", "false").lower(), ("true", "false")) == "true"
    if stream and response_format not in ("json", "text"):
        raise RequestError(400, f"{response_format} cannot be streamed; request json or text, or omit stream", "stream")
    temperature = _temperature(values.get("temperature", "0"))
    for name, is_set in (("prompt", "prompt" in values), ("temperature", temperature > 0)):
        if is_set and not capabilities.prompts:
            raise RequestError(400, f"the backend of this server does not support {name}; omit it", name)
    timestamps: Any = _timestamps(response_format, granularities, capabilities)
    language = _language(values["language"], capabilities) if "language" in values else None
    return TranscriptionRequest(
        RequestOptions(task, language, timestamps, values.get("prompt"), temperature), response_format, stream
    )


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise RequestError(
            400, f"unsupported value {value!r} of {name}; choose {', '.join(choices[:-1])} or {choices[-1]}", name
        )
    return value


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise RequestError(
            400, f"unsupported value {text!r} of temperature; choose a number from 0 to 1", "temperature"
        )
    return number


def _timestamps(response_format: str, granularities: Sequence[str], capabilities: Capabilities) -> str:
    for granularity in granularities:
        _one_of(GRANULARITIES, granularity, ("segment", "word"))
    if granularities and response_format != "verbose_json":
        raise RequestError(
            400, f"{GRANULARITIES} requires the response_format verbose_json, not {response_format}", GRANULARITIES
        )
    if len(set(granularities)) > 1:
        raise RequestError(
            400, "segment and word timestamps cannot be combined; send one request for each", GRANULARITIES
        )
    if "word" in granularities and not capabilities.word_timestamps:
        raise RequestError(
            400,
            "word timestamps are not available with this model and backend; request segment timestamps",
            GRANULARITIES,
        )
    if response_format in ("json", "text"):
        return "none"
    return granularities[0] if granularities else "segment"


def _language(text: str, capabilities: Capabilities) -> str:
    """Returns the code of a language, given its code or English name."""
    code = TO_LANGUAGE_CODE.get(text.lower(), text.lower())
    if code not in capabilities.languages:
        advice = (
            "the model is English-only"
            if capabilities.languages == {"en"}
            else "use a code or name such as de or german"
        )
        raise RequestError(400, f"{capabilities.name} does not support the language {text!r}; {advice}", "language")
    return code
