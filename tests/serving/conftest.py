"""A server in this process whose model can be paused, and the reference transcripts of transformers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import soundfile
import uvicorn

from lite_whisper.models.folders import load_model
from lite_whisper.serving.app import build_app
from lite_whisper.serving.settings import ServingSettings
from lite_whisper.transcription.recognizers import ComputeSettings, load_recognizer
from lite_whisper.transcription.transcriber import pipeline_options

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIATURE = EXAMPLES / "whisper-digits"
TIMEOUT = 120  # seconds; generous, for busy machines


class PausableRecognizer:
    """A recognizer that can be paused, and records the number of windows and the options of every call."""

    def __init__(self, recognizer: Any) -> None:
        self.model, self.tokenizer = recognizer.model, recognizer.tokenizer
        self.feature_extractor = recognizer.feature_extractor
        self.recognizer, self.calls = recognizer, []
        self.running, self.entered = threading.Event(), threading.Event()
        self.running.set()

    def __call__(self, inputs, **options):
        self.entered.set()
        assert self.running.wait(TIMEOUT)
        self.calls.append((len(inputs), options))
        return self.recognizer(inputs, **options)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.calls.clear()
        self.entered.clear()
        self.running.clear()
        try:
            yield
        finally:
            self.running.set()


class Server:
    """A running server, with clients for it."""

    def __init__(self, url: str, model: PausableRecognizer) -> None:
        self.url, self.model = url, model
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)

    def post(self, file: Any = None, endpoint: str = "transcriptions", **fields: Any) -> requests.Response:
        files = None if file is None else {"file": file}
        url = f"{self.url}/v1/audio/{endpoint}"
        return requests.post(url, files=files, data=fields, timeout=TIMEOUT)

    def metric(self, name: str) -> float:
        lines = requests.get(f"{self.url}/metrics", timeout=TIMEOUT).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.fixture(scope="session")
def recognizer() -> Any:
    model, processor = load_model(str(MINIATURE))
    compute = ComputeSettings("transformers", "float32", "cpu", 8)
    return load_recognizer(model, processor, compute, lambda: None, pipeline_options())[0]


@pytest.fixture(scope="session")
def serving(recognizer: Any) -> Callable[..., AbstractContextManager[Server]]:
    """Returns a context manager that starts a server with the given limits."""

    @contextmanager
    def started(**limits: Any) -> Iterator[Server]:
        pausable = PausableRecognizer(recognizer)
        app = build_app(pausable, ServingSettings(str(MINIATURE), **limits))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                thread.join(0.02)
            host, port = server.servers[0].sockets[0].getsockname()
            yield Server(f"http://{host}:{port}", pausable)
        finally:
            pausable.running.set()
            server.should_exit = True
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    return started


@pytest.fixture(scope="session")
def server(serving: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    """The server that most tests share."""
    with ExitStack() as stack:
        yield stack.enter_context(serving())


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    """Short recordings."""
    return [EXAMPLES / f"digits/test/test_{index:03}.flac" for index in range(6)]


@pytest.fixture(scope="session")
def expected(recognizer: Any, clips: list[Path]) -> list[str]:
    """The transcript of transformers for each clip on its own, in English, without timestamps."""
    kwargs = {"task": "transcribe", "language": "en", "num_beams": 1}
    samples = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    return [recognizer(each, return_timestamps=False, generate_kwargs=kwargs)["text"].strip() for each in samples]
