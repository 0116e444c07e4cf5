"""Batches concurrent requests: a single thread runs the model on everything that is waiting."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ..audio import Clip
from ..common.errors import InputError
from ..transcription.formats import Transcript
from ..transcription.long_recordings import detect_languages, split_into_chunks
from ..transcription.recognizers import Recognizer
from ..transcription.transcriber import Recording, Timestamps, Transcriber, pipeline_options

Task = Literal["transcribe", "translate"]
Outcome = tuple[Transcript, str | None]  # with the language code, if it was set or requested


@dataclass(frozen=True)
class RequestOptions:
    """
    Decoding options of a request. Requests with the same options are batched together.

    Args:
        task (`str`): `"transcribe"` or `"translate"`.
        language (`str`, *optional*): language code; detected by default.
        timestamps (`str`): granularity of the timestamps: `"none"`, `"segment"` or `"word"`.
        prompt (`str`, *optional*): text assumed to precede the audio.
        temperature (`float`): sampling temperature; 0 decodes greedily.
    """

    task: Task = "transcribe"
    language: str | None = None
    timestamps: Timestamps = "segment"
    prompt: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True)
class _Request:
    recording: Recording
    options: RequestOptions
    needs_language: bool
    future: "Future[Outcome]"


class Batches:
    """
    Transcribes recordings in batches, and returns futures of their transcripts.

    Recordings that arrive while a batch runs wait. They are then grouped by their options, and each group runs in
    batches of similar length. A future is resolved when its batch is done. A cancelled recording is dropped unless its
    batch is already running.

    Memory: the model, one batch, the waiting recordings, and the samples of half an hour of recordings longer than a
    window.

    Args:
        recognizer (`Recognizer`): the model and its processor.
        batch_size (`int`): windows per batch.
        observe (`Callable`, *optional*): called with the number of windows on each call of the model.
    """

    def __init__(
        self, recognizer: Recognizer, batch_size: int, observe: Callable[[int], None] = lambda windows: None
    ) -> None:
        self._recognizer: Any = _ObservedRecognizer(recognizer, observe)
        self._batch_size = batch_size
        self._waiting: dict[int, _Request] = {}
        self._condition = threading.Condition()
        self._closed = False
        self.last_round_seconds = 0.0  # duration of the last round of batches
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def window(self) -> float:
        """Length of the model's window in seconds."""
        extractor = self._recognizer.feature_extractor
        return extractor.n_samples / extractor.sampling_rate

    def submit(self, recording: Recording, options: RequestOptions, needs_language: bool = False) -> "Future[Outcome]":
        """
        Queues a recording for transcription.

        Args:
            recording (`Recording`): a readable recording with a unique index.
            options (`RequestOptions`): decoding options.
            needs_language (`bool`): whether to return the language; unless it is set, detecting it takes a separate
                pass.

        Returns:
            `Future`: the transcript and the language. Fails with an `InputError` if the prompt is invalid, or with
                the exception raised by the model.
        """
        request = _Request(recording, options, needs_language, Future())
        with self._condition:
            self._waiting[recording.index] = request
            self._condition.notify()
        request.future.add_done_callback(lambda _: self._waiting.pop(recording.index, None))
        return request.future

    def close(self, timeout: float = 1.0) -> None:
        """Stops the thread, and waits at most `timeout` seconds for a running batch."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                taken, self._waiting = list(self._waiting.values()), {}
            self._transcribe(taken)
            del taken  # frees the audio while the queue is empty

    def _transcribe(self, taken: Sequence[_Request]) -> None:
        start = time.monotonic()
        groups: dict[RequestOptions, list[_Request]] = defaultdict(list)
        try:
            for request in self._with_languages(taken):
                groups[request.options].append(request)
            for options, group in groups.items():
                self._transcribe_group(options, group)
        except Exception as error:  # detecting languages failed; report it to the clients
            _fail(taken, error)
        self.last_round_seconds = time.monotonic() - start

    def _with_languages(self, taken: Sequence[_Request]) -> list[_Request]:
        """Detects the language of requests whose response contains it, unless it is set."""
        unknown = [request for request in taken if request.needs_language and not request.options.language]
        languages = self._languages([request.recording for request in unknown])
        detected = dict(zip([request.recording.index for request in unknown], languages, strict=True))
        return [
            replace(request, options=replace(request.options, language=detected[request.recording.index]))
            if request.recording.index in detected
            else request
            for request in taken
        ]

    def _languages(self, recordings: Sequence[Recording]) -> list[str]:
        model, extractor = self._recognizer.model, self._recognizer.feature_extractor
        if not getattr(model.generation_config, "is_multilingual", False):
            return ["en"] * len(recordings)
        clips = (self._beginning(recording) for recording in recordings)  # lazily: one batch in memory
        return [token.strip("<|>") for token in detect_languages(model, extractor, clips, self._batch_size)]

    def _beginning(self, recording: Recording) -> Clip:
        """The audio to detect the language from: the recording or, if it is longer than a window, its first chunk."""
        if recording.clip:
            return recording.clip
        clip, extractor = recording.entry.read(), self._recognizer.feature_extractor
        chunks = split_into_chunks(0, clip, extractor)
        return chunks[0].clip if chunks else Clip(clip.name, clip.samples[: extractor.n_samples])

    def _transcribe_group(self, options: RequestOptions, group: Sequence[_Request]) -> None:
        requests = {request.recording.index: request for request in group}
        try:
            transcriber = Transcriber(self._recognizer, self._batch_size, self._pipeline_options(options))
            recordings = [request.recording for request in group]
            for batch in transcriber.transcripts(recordings, _CancelledIndices(requests)):
                for transcript in batch:
                    _resolve(requests[transcript.index].future, (transcript, options.language))
        except Exception as error:  # report it to the clients of this group
            _fail(group, error)

    def _pipeline_options(self, options: RequestOptions) -> dict[str, Any]:
        model = self._recognizer.model
        generate_kwargs: dict[str, Any] = {"num_beams": 1}
        if getattr(model.generation_config, "is_multilingual", False):
            generate_kwargs |= {"task": options.task, "language": options.language}
        if options.temperature:
            generate_kwargs["temperature"] = options.temperature
        if options.prompt:
            generate_kwargs["prompt_ids"] = self._prompt_ids(options.prompt)
        return pipeline_options(options.timestamps, generate_kwargs)

    def _prompt_ids(self, prompt: str) -> torch.Tensor:
        """The tokens of a prompt, truncated on the left to the maximum that Whisper accepts."""
        try:
            start, *tokens = self._recognizer.tokenizer.get_prompt_ids(prompt, return_tensors="np").tolist()
        except ValueError as error:  # the prompt contains a special token
            raise InputError(f"{error}; remove it from the prompt", setting="prompt") from error
        limit = self._recognizer.model.config.max_target_positions // 2 - 1
        return torch.tensor([start, *tokens[-limit:]], device=self._recognizer.model.device)


class _ObservedRecognizer:
    """A recognizer that reports the number of windows of each call."""

    def __init__(self, recognizer: Recognizer, observe: Callable[[int], None]) -> None:
        self.model, self.tokenizer = recognizer.model, recognizer.tokenizer
        self.feature_extractor = recognizer.feature_extractor
        self._recognizer, self._observe = recognizer, observe

    def __call__(self, inputs: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        self._observe(len(inputs))
        return self._recognizer(inputs, **options)


class _CancelledIndices:
    """The indices of the requests that are cancelled at the time of the lookup."""

    def __init__(self, requests: dict[int, _Request]) -> None:
        self._requests = requests

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self._requests[index].future.cancelled()


def _resolve(future: "Future[Outcome]", outcome: Outcome) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(outcome)


def _fail(requests: Sequence[_Request], error: Exception) -> None:
    for request in requests:
        if not request.future.done() and request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)
