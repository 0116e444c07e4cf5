"""A model in, a server of it out, until it is told to stop."""

import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ..common.errors import InputError
from ..common.processes import available_device
from ..models.folders import load_model
from ..transcription.recognizers import Computing, load_recognizer
from ..transcription.transcriber import pipeline_options
from .settings import ServingSettings

try:
    import uvicorn

    from .app import build_app
except ImportError as error:
    raise InputError(f"a server needs FastAPI ({error}); install it with pip install 'lite-whisper[serve]'") from error

IDLE = 256  # connections beside those in the queue, such as of clients that keep them open


def serve(settings: ServingSettings, ready: Callable[[str], None] = print) -> None:
    """
    Serves a model until SIGTERM or Ctrl-C comes: then no more requests are taken, and those under way are finished.

    Args:
        settings (`ServingSettings`): which model, where, and within which limits.
        ready (`Callable`): is told, in words, when and where it can be asked.

    Raises:
        InputError: the address is taken, the model cannot be used, or a package is missing.
    """
    with closing(_bound(settings.host, settings.port)) as listener:
        model, processor = load_model(settings.model)
        computing = Computing(settings.backend, settings.dtype, available_device(settings.device), settings.batch_size)
        recognizer, _ = load_recognizer(model, processor, computing, lambda: None, pipeline_options())
        config = uvicorn.Config(
            build_app(recognizer, settings),
            log_config=None,  # the log is that of the program
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=settings.max_requests + IDLE,
            timeout_graceful_shutdown=math.ceil(settings.timeout) + 1,  # after it every request has been answered
        )
        with _signals_do_no_harm():
            listener.listen(config.backlog)
            ready(f"{settings.model} is served at {_address(listener)}; Ctrl-C ends it")
            uvicorn.Server(config).run(sockets=[listener])


def _bound(host: str, port: int) -> socket.socket:
    """A socket with its address, which nobody can connect to yet: it is known at once whether it can be had."""
    try:
        convert_presets, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(convert_presets, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}); give another", setting="port"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _signals_do_no_harm() -> Iterator[None]:
    """Once uvicorn has stopped by a signal, it sends the same signal again, which would end the program by force."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
