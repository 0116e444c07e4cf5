"""The endpoints: what comes in is checked and read here, then waits for its batch."""

import asyncio
import io
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..audio import Clip, Entry, decode
from ..common.errors import InputError
from ..transcription.recognizers import Recognizer
from ..transcription.transcriber import Recording
from .answers import answer
from .batches import Batches, Outcome, Task
from .errors import GONE, RequestError
from .fields import Capabilities, asked
from .metrics import Metrics
from .settings import ServingSettings
from .uploads import discard, received

LINGER = 5  # seconds in which a client that was refused can send the rest
READERS = 2  # files that are decoded at once
LONGEST_WAIT = 60  # seconds; OpenAI's clients wait no longer when they are told to


class Service:
    """
    Answers requests to transcribe.

    Args:
        recognizer (`Recognizer`): with the model.
        settings (`ServingSettings`): how it runs, and the limits.
    """

    def __init__(self, recognizer: Recognizer, settings: ServingSettings) -> None:
        self.metrics = Metrics()
        self.capabilities = Capabilities.of(settings.model, recognizer.model, settings.backend)
        self.batches = Batches(recognizer, settings.batch_size, self.metrics.batch.observe)
        self._settings = settings
        self._largest = int(settings.max_upload * 1e6)
        self._places = settings.max_requests
        self._numbers = itertools.count()
        self._reading = asyncio.Semaphore(READERS)

    async def answer(self, request: Request, task: Task) -> Response:
        """The answer to a request: a transcript, or an error in the form of OpenAI's."""
        start, status = time.perf_counter(), 500
        try:
            with self._place():
                response = await self._transcribed(request, task)
            self.metrics.latency.observe(time.perf_counter() - start)
            status = response.status_code
            return response
        except (RequestError, InputError) as error:
            refused = error if isinstance(error, RequestError) else RequestError.of(error)
            status = refused.status
            await self._received_to_its_end(request)
            return refused.response()
        except ClientDisconnect:
            status = GONE
            return Response(status_code=status)
        finally:
            self.metrics.requests.labels(str(status)).inc()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue, if there is one."""
        if not self._places:
            wait = min(max(1, math.ceil(self.batches.last_round)), LONGEST_WAIT)
            raise RequestError(
                429, f"all {self._settings.max_requests} places are taken; try again later", retry_after=wait
            )
        self._places -= 1
        self.metrics.queue.inc()
        try:
            yield
        finally:
            self._places += 1
            self.metrics.queue.dec()

    async def _transcribed(self, request: Request, task: Task) -> Response:
        try:
            async with asyncio.timeout(self._settings.timeout):
                upload = await received(request, self._largest)
                wanted = asked(upload.fields, task, self.capabilities)
                async with self._reading:
                    recording = await asyncio.to_thread(self._read, upload.file)
                future = self.batches.submit(recording, wanted.decoding, wanted.names_language)
                transcript, language = await _unless_gone(request, future)
        except TimeoutError as error:
            message = f"not done within {self._settings.timeout:g} seconds; try again later, or send less audio"
            raise RequestError(503, message, retry_after=LONGEST_WAIT) from error
        self.metrics.audio.inc(transcript.duration)
        return answer(wanted, transcript, language)

    def _read(self, data: bytes) -> Recording:
        """
        The recording that a file holds.

        Raises:
            InputError: it cannot be decoded, or is too long.
        """
        load = partial(io.BytesIO, data)
        try:
            clip = Clip("file", decode(load(), self._settings.max_duration))
        except InputError as error:
            message = f"the file {error}"
            if "cannot be decoded" in message and "convert" not in message:
                message += "; send wav, flac, ogg, opus or mp3"
            raise InputError(message, setting="file") from error
        entry = Entry(clip.name, load, None, clip.name)
        return Recording.of(next(self._numbers), entry, clip, self.batches.window)

    async def _received_to_its_end(self, request: Request) -> None:
        try:
            async with asyncio.timeout(LINGER):
                await discard(request, self._largest)
        except (ClientDisconnect, RuntimeError, TimeoutError):  # there is nobody, nothing, or no end
            pass


async def _unless_gone(request: Request, future: "Future[Outcome]") -> Outcome:
    """
    What a future gives.

    Raises:
        ClientDisconnect: the client left before; the future is cancelled then, as it is when there is no more time.
    """
    outcome = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((outcome, gone), return_when=asyncio.FIRST_COMPLETED)
        if not outcome.done():
            raise ClientDisconnect
        return outcome.result()
    finally:
        outcome.cancel()
        gone.cancel()


async def _gone(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def build_app(recognizer: Recognizer, settings: ServingSettings) -> FastAPI:
    """
    The application, for uvicorn or another server of ASGI; a thread that runs the model ends with it.

    Args:
        recognizer (`Recognizer`): with the model.
        settings (`ServingSettings`): how it runs, and the limits.
    """
    service, started = Service(recognizer, settings), int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.batches.close()

    app = FastAPI(title="lite-whisper", lifespan=lifespan, openapi_url=None)  # its pages load scripts from elsewhere

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        return await service.answer(request, "transcribe")

    @app.post("/v1/audio/translations")
    async def translations(request: Request) -> Response:
        return await service.answer(request, "translate")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": service.capabilities.name, "object": "model", "created": started, "owned_by": "lite-whisper"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return RequestError(
            500, f"the model failed ({type(error).__name__}); the log of the server says more"
        ).response()

    return app
