"""The command `lite-whisper serve`."""

import argparse
from collections.abc import Sequence

from ..serving.settings import ServingSettings
from . import exit_codes
from .options import add_computing, positive, positive_number


def port(text: str) -> int:
    """The number of a port."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper serve`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve a Whisper, compressed or not, by the protocol of OpenAI: /v1/audio/transcriptions and "
        "/v1/audio/translations. What several clients ask for runs in batches.",
    )
    parser.add_argument("model", help="Hub id or folder of a Whisper, compressed or not")
    limits = ServingSettings("")
    parser.add_argument(
        "--host",
        default=limits.host,
        help=f"the address to listen on (default {limits.host}, which this machine alone can reach)",
    )
    parser.add_argument("--port", type=port, default=limits.port, help=f"default {limits.port}; 0 takes a free one")
    add_computing(parser, batch_size=limits.batch_size, int8=True)
    parser.add_argument(
        "--backend",
        choices=("transformers", "ctranslate2"),
        default="transformers",
        help="what computes: transformers (the default), or ctranslate2, whose decoder is faster on CPUs and which "
        "needs lite-whisper[faster-whisper]",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=limits.queue,
        help=f"requests at once, those that wait too; more are told to come again (default {limits.queue})",
    )
    parser.add_argument(
        "--max-upload",
        type=positive_number,
        default=limits.max_upload,
        help=f"megabytes of a file (default {limits.max_upload:g})",
    )
    parser.add_argument(
        "--max-duration",
        type=positive_number,
        default=limits.max_duration,
        help=f"seconds of audio in a file (default {limits.max_duration:g})",
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=limits.timeout,
        help=f"seconds that a request may take (default {limits.timeout:g})",
    )
    return parser


def run(settings: ServingSettings) -> None:
    """Serves, and prints where."""
    from ..serving.serve import serve  # FastAPI need not be installed

    serve(settings, ready=lambda said: print(said, flush=True))


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper serve") -> int:
    """Runs `lite-whisper serve`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(parser, lambda: run(ServingSettings(**vars(arguments))))
