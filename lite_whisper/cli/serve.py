"""The command `lite-whisper serve`."""

import argparse
from collections.abc import Sequence

from ..serving.settings import ServingSettings
from . import exit_codes
from .options import DTYPES, add_batch_size, add_device, add_dtype, add_model_folder, positive, positive_number


def port(text: str) -> int:
    """Parses a port number."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (0 to 65535)")
    return int(text)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Builds the parser of `lite-whisper serve`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve a Whisper, compressed or not, through an OpenAI-compatible API: /v1/audio/transcriptions "
        "and /v1/audio/translations. Concurrent requests are batched.",
    )
    add_model_folder(parser)
    parser.add_argument(
        "--host",
        default=ServingSettings.host,
        help="address to listen on (default: %(default)s, reachable from this machine only)",
    )
    parser.add_argument(
        "--port", type=port, default=ServingSettings.port, help="port; 0 picks a free one (default: %(default)s)"
    )
    add_device(parser)
    add_dtype(parser, ServingSettings.dtype, (*DTYPES, "int8"))
    add_batch_size(parser, ServingSettings.batch_size)
    parser.add_argument(
        "--backend",
        choices=("transformers", "ctranslate2"),
        default=ServingSettings.backend,
        help="engine that runs the model; the ctranslate2 decoder is faster on CPUs and requires "
        "lite-whisper[faster-whisper] (default: %(default)s)",
    )
    parser.add_argument(
        "--max-requests",
        type=positive,
        default=ServingSettings.max_requests,
        help="maximum number of queued and running requests; further ones get HTTP 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-upload",
        type=positive_number,
        default=ServingSettings.max_upload,
        metavar="MB",
        help="maximum size of an audio file in megabytes (default: %(default)g)",
    )
    parser.add_argument(
        "--max-duration",
        type=positive_number,
        default=ServingSettings.max_duration,
        metavar="SECONDS",
        help="maximum duration of an audio file in seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=ServingSettings.timeout,
        metavar="SECONDS",
        help="maximum time for one request in seconds (default: %(default)g)",
    )
    return parser


def run(settings: ServingSettings) -> None:
    """Starts the server and prints its URL."""
    from ..serving.serve import serve  # imports FastAPI, which is optional

    serve(settings, ready=lambda message: print(message, flush=True))


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper serve") -> int:
    """Runs `lite-whisper serve`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(ServingSettings(**vars(arguments))))
