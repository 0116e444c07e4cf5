"""Loads a model and serves it until SIGTERM or Ctrl-C."""

import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ..common.errors import InputError
from ..common.processes import available_device
from ..models.folders import load_model
from ..transcription.recognizers import ComputeSettings, load_recognizer
from ..transcription.transcriber import pipeline_options
from .settings import ServingSettings

try:
    import uvicorn

    from .app import build_app
except ImportError as error:
    raise InputError(
        f"the server requires FastAPI ({error}); install it with pip install 'lite-whisper[serve]'"
    ) from error

MAX_IDLE_CONNECTIONS = 256  # kept open by clients, beside those with a request in the queue


def serve(settings: ServingSettings, ready: Callable[[str], None] = print) -> None:
    """
    Serves a model until SIGTERM or Ctrl-C, then stops accepting requests and finishes those in progress.

    Args:
        settings (`ServingSettings`): model, address and limits.
        ready (`Callable`): called with a message containing the URL once the server accepts requests.

    Raises:
        InputError: the address is in use, the model cannot be used, or a package is missing.
    """
    with closing(_bind(settings.host, settings.port)) as listener:
        model, processor = load_model(settings.model)
        compute = ComputeSettings(
            settings.backend, settings.dtype, available_device(settings.device), settings.batch_size
        )
        recognizer, _ = load_recognizer(model, processor, compute, lambda: None, pipeline_options())
        config = uvicorn.Config(
            build_app(recognizer, settings),
            log_config=None,  # uvicorn logs through the logging of this program
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=settings.max_requests + MAX_IDLE_CONNECTIONS,
            timeout_graceful_shutdown=math.ceil(settings.timeout) + 1,  # every request times out before
        )
        with _ignoring_repeated_signals():
            listener.listen(config.backlog)
            ready(f"serving {settings.model} at {_url(listener)}; press Ctrl-C to stop")
            uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    """Binds a socket without listening yet, so that an address in use is reported before the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another port", setting="port"
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _ignoring_repeated_signals() -> Iterator[None]:
    """Ignores the signal that uvicorn raises again after stopping because of it, which would kill the program."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
