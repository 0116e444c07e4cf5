"""What several requests ask for at once, put together: one thread, which takes all that waits."""

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
from ..transcription.long_recordings import detected_languages, pieces_of
from ..transcription.recognizers import Recognizer
from ..transcription.transcriber import Recording, Timestamps, Transcriber, pipeline_options

Task = Literal["transcribe", "translate"]
Outcome = tuple[Transcript, str | None]  # with the code of the language, where it is told or was asked for


@dataclass(frozen=True)
class RequestOptions:
    """
    How audio is to be decoded; what is decoded alike runs together.

    Args:
        task (`str`): `"transcribe"` or `"translate"`.
        language (`str`, *optional*): the code of what is spoken; by default the model detects it.
        timestamps (`str`): `"none"`, `"segment"` or `"word"`.
        prompt (`str`, *optional*): text that the audio is taken to follow.
        temperature (`float`): 0 takes the most likely tokens; others are drawn.
    """

    task: Task = "transcribe"
    language: str | None = None
    timestamps: Timestamps = "segment"
    prompt: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True)
class _Request:
    recording: Recording
    decoding: RequestOptions
    names_language: bool
    future: "Future[Outcome]"


class Batches:
    """
    Recordings in, futures of their transcripts out.

    While a batch runs, others wait; then all that wait are grouped by how they are to be decoded, and each group runs
    in batches of similar length. A future is resolved when its batch is done. One that is cancelled is forgotten,
    unless its batch runs already.

    Memory: beside the model and a batch, what waits, and the samples of half an hour of recordings longer than a
    window.

    Args:
        recognizer (`Recognizer`): with the model.
        batch_size (`int`): windows that run at once.
        observe (`Callable`, *optional*): is told how many windows run, each time that the model does.
    """

    def __init__(
        self, recognizer: Recognizer, batch_size: int, observe: Callable[[int], None] = lambda windows: None
    ) -> None:
        self._recognizer: Any = _Observed(recognizer, observe)
        self._batch_size = batch_size
        self._waiting: dict[int, _Request] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.last_round = 0.0  # seconds that those took which ran last
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def window(self) -> float:
        """Seconds of the model's window."""
        extractor = self._recognizer.feature_extractor
        return extractor.n_samples / extractor.sampling_rate

    def submit(self, recording: Recording, decoding: RequestOptions, names_language: bool = False) -> "Future[Outcome]":
        """
        Lets a recording be transcribed.

        Args:
            recording (`Recording`): that could be read, with an index of its own.
            decoding (`RequestOptions`): how.
            names_language (`bool`): whether the language is to be known, which takes a pass of its own if it is not
                told.

        Returns:
            `Future`: of the transcript and the language. Its exception is an `InputError` where the prompt cannot be
                used, or whatever the model raised.
        """
        request = _Request(recording, decoding, names_language, Future())
        with self._changed:
            self._waiting[recording.index] = request
            self._changed.notify()
        request.future.add_done_callback(lambda _: self._waiting.pop(recording.index, None))
        return request.future

    def close(self, patience: float = 1.0) -> None:
        """Ends the thread; of what still runs so many seconds are waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                taken, self._waiting = list(self._waiting.values()), {}
            self._transcribe(taken)
            del taken  # its audio, while nothing waits

    def _transcribe(self, taken: Sequence[_Request]) -> None:
        start = time.monotonic()
        groups: dict[RequestOptions, list[_Request]] = defaultdict(list)
        try:
            for request in self._with_languages(taken):
                groups[request.decoding].append(request)
            for decoding, group in groups.items():
                self._transcribe_group(decoding, group)
        except Exception as error:  # of the model, in the languages: it is those who asked that have to know
            _fail(taken, error)
        self.last_round = time.monotonic() - start

    def _with_languages(self, taken: Sequence[_Request]) -> list[_Request]:
        """The requests with the language told, where the answer is to name it."""
        unknown = [request for request in taken if request.names_language and not request.decoding.language]
        names = self._languages([request.recording for request in unknown])
        found = dict(zip([request.recording.index for request in unknown], names, strict=True))
        return [
            replace(request, decoding=replace(request.decoding, language=found[request.recording.index]))
            if request.recording.index in found
            else request
            for request in taken
        ]

    def _languages(self, recordings: Sequence[Recording]) -> list[str]:
        model, extractor = self._recognizer.model, self._recognizer.feature_extractor
        if not getattr(model.generation_config, "is_multilingual", False):
            return ["en"] * len(recordings)
        clips = (self._beginning(recording) for recording in recordings)  # of longer ones a batch is in memory
        return [token.strip("<|>") for token in detected_languages(model, extractor, clips, self._batch_size)]

    def _beginning(self, recording: Recording) -> Clip:
        """What the language of a recording is told by: of a longer one the first piece, if it is not all silent."""
        if recording.clip:
            return recording.clip
        clip, extractor = recording.entry.read(), self._recognizer.feature_extractor
        pieces = pieces_of(0, clip, extractor)
        return pieces[0].clip if pieces else Clip(clip.name, clip.samples[: extractor.n_samples])

    def _transcribe_group(self, decoding: RequestOptions, group: Sequence[_Request]) -> None:
        requests = {request.recording.index: request for request in group}
        try:
            transcriber = Transcriber(self._recognizer, self._batch_size, self._options(decoding))
            recordings = [request.recording for request in group]
            for found in transcriber.transcripts(recordings, _Abandoned(requests)):
                for transcript in found:
                    _resolve(requests[transcript.index].future, (transcript, decoding.language))
        except Exception as error:  # likewise
            _fail(group, error)

    def _options(self, decoding: RequestOptions) -> dict[str, Any]:
        model = self._recognizer.model
        generate_kwargs: dict[str, Any] = {"num_beams": 1}
        if getattr(model.generation_config, "is_multilingual", False):
            generate_kwargs |= {"task": decoding.task, "language": decoding.language}
        if decoding.temperature:
            generate_kwargs["temperature"] = decoding.temperature
        if decoding.prompt:
            generate_kwargs["prompt_ids"] = self._prompt_ids(decoding.prompt)
        return pipeline_options(decoding.timestamps, generate_kwargs)

    def _prompt_ids(self, prompt: str) -> torch.Tensor:
        """The tokens of a prompt; of a longer one the last, as many as Whisper takes."""
        try:
            start, *tokens = self._recognizer.tokenizer.get_prompt_ids(prompt, return_tensors="np").tolist()
        except ValueError as error:  # it spells a special token
            raise InputError(f"{error}; leave it out", setting="prompt") from error
        most = self._recognizer.model.config.max_target_positions // 2 - 1
        return torch.tensor([start, *tokens[-most:]], device=self._recognizer.model.device)


class _Observed:
    """A recognizer that tells how many windows run."""

    def __init__(self, recognizer: Recognizer, observe: Callable[[int], None]) -> None:
        self.model, self.tokenizer = recognizer.model, recognizer.tokenizer
        self.feature_extractor = recognizer.feature_extractor
        self._recognizer, self._observe = recognizer, observe

    def __call__(self, inputs: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        self._observe(len(inputs))
        return self._recognizer(inputs, **options)


class _Abandoned:
    """The indices of requests that nobody waits for any more, as of when it is asked."""

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
