"""The HTTP endpoints: validates requests, decodes their audio and queues it for the next batch."""

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
from .batches import Batches, Outcome, Task
from .errors import CLIENT_DISCONNECTED, RequestError
from .metrics import Metrics
from .request_fields import Capabilities, parse_request
from .responses import build_response
from .settings import ServingSettings
from .uploads import discard_body, read_upload

DISCARD_SECONDS = 5  # for a rejected client to finish sending its request
MAX_DECODERS = 2  # files that are decoded at once
MAX_RETRY_AFTER = 60  # seconds; OpenAI's clients ignore longer delays


class Service:
    """
    Handles transcription requests.

    Args:
        recognizer (`Recognizer`): the model and its processor.
        settings (`ServingSettings`): settings and limits of the server.
    """

    def __init__(self, recognizer: Recognizer, settings: ServingSettings) -> None:
        self.metrics = Metrics()
        self.capabilities = Capabilities.from_model(settings.model, recognizer.model, settings.backend)
        self.batches = Batches(recognizer, settings.batch_size, self.metrics.batch.observe)
        self._settings = settings
        self._max_upload = int(settings.max_upload * 1e6)
        self._free_slots = settings.max_requests
        self._indices = itertools.count()
        self._decoders = asyncio.Semaphore(MAX_DECODERS)

    async def handle(self, request: Request, task: Task) -> Response:
        """Handles a request; returns a transcript, or an error in OpenAI's format."""
        start, status = time.perf_counter(), 500
        try:
            with self._slot():
                response = await self._transcribe(request, task)
            self.metrics.latency.observe(time.perf_counter() - start)
            status = response.status_code
            return response
        except (RequestError, InputError) as error:
            rejection = error if isinstance(error, RequestError) else RequestError.from_error(error)
            status = rejection.status
            await self._discard_rest(request)
            return rejection.response()
        except ClientDisconnect:
            status = CLIENT_DISCONNECTED
            return Response(status_code=status)
        finally:
            self.metrics.requests.labels(str(status)).inc()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Occupies a slot in the queue, or rejects the request with HTTP 429 if none is free."""
        if not self._free_slots:
            retry_after = min(max(1, math.ceil(self.batches.last_round_seconds)), MAX_RETRY_AFTER)
            raise RequestError(
                429,
                f"too many requests: all {self._settings.max_requests} slots are in use; try again later",
                retry_after=retry_after,
            )
        self._free_slots -= 1
        self.metrics.queue.inc()
        try:
            yield
        finally:
            self._free_slots += 1
            self.metrics.queue.dec()

    async def _transcribe(self, request: Request, task: Task) -> Response:
        try:
            async with asyncio.timeout(self._settings.timeout):
                upload = await read_upload(request, self._max_upload)
                parsed = parse_request(upload.fields, task, self.capabilities)
                async with self._decoders:
                    recording = await asyncio.to_thread(self._read, upload.file)
                future = self.batches.submit(recording, parsed.options, parsed.needs_language)
                transcript, language = await _result_unless_disconnected(request, future)
        except TimeoutError as error:
            message = f"timed out after {self._settings.timeout:g} seconds; try again later, or send less audio"
            raise RequestError(503, message, retry_after=MAX_RETRY_AFTER) from error
        self.metrics.audio.inc(transcript.duration)
        return build_response(parsed, transcript, language)

    def _read(self, data: bytes) -> Recording:
        """
        Decodes an uploaded file.

        Raises:
            InputError: the file cannot be decoded or is too long.
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
        return Recording.from_entry(next(self._indices), entry, clip, self.batches.window)

    async def _discard_rest(self, request: Request) -> None:
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                await discard_body(request, self._max_upload)
        except (ClientDisconnect, RuntimeError, TimeoutError):  # disconnected, already read, or too slow
            pass


async def _result_unless_disconnected(request: Request, future: "Future[Outcome]") -> Outcome:
    """
    Waits for the result of a future.

    Raises:
        ClientDisconnect: the client disconnected first. The future is cancelled then, and also on a timeout.
    """
    outcome = asyncio.wrap_future(future)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((outcome, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not outcome.done():
            raise ClientDisconnect
        return outcome.result()
    finally:
        outcome.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def build_app(recognizer: Recognizer, settings: ServingSettings) -> FastAPI:
    """
    Builds the ASGI application. A thread runs the model for as long as the application lives.

    Args:
        recognizer (`Recognizer`): the model and its processor.
        settings (`ServingSettings`): settings and limits of the server.
    """
    service, started = Service(recognizer, settings), int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.batches.close()

    # openapi_url=None: the pages of the API's documentation would load scripts from the internet.
    app = FastAPI(title="lite-whisper", lifespan=lifespan, openapi_url=None)

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        return await service.handle(request, "transcribe")

    @app.post("/v1/audio/translations")
    async def translations(request: Request) -> Response:
        return await service.handle(request, "translate")

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
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return RequestError(
            500, f"the model failed ({type(error).__name__}); see the log of the server for details"
        ).response()

    return app
