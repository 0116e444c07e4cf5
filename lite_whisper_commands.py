"""
The console script `lite-whisper`.

It is installed as a module of its own, beside the package: importing the package takes seconds, because that makes its
classes known to transformers, and `lite-whisper --help` need not wait for them.
"""

import gc
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

COMMANDS = {
    "convert": ("lite_whisper.convert", "compress a Whisper"),
    "family": ("lite_whisper.cli.family", "make the three sizes of a Whisper from one calibration"),
    "profile": ("lite_whisper.cli.profile", "measure what products of every rank take on this machine"),
    "recover": ("lite_whisper.cli.recover", "train a compressed model to agree with the one before compression"),
    "pad": ("lite_whisper.cli.pad", "let a model know the silence behind a clip, so that it costs nothing"),
    "export": ("lite_whisper.cli.export", "write a model for another runtime, such as ONNX Runtime"),
    "transcribe": ("lite_whisper.cli.transcribe", "transcribe recordings with any Whisper"),
    "serve": ("lite_whisper.cli.serve", "answer requests to transcribe, by the protocol of OpenAI"),
    "evaluate": ("lite_whisper.cli.evaluate", "measure and compare error rates and speed"),
    "score": ("lite_whisper.cli.score", "compute the figures of an evaluation again"),
    "publish": ("lite_whisper.cli.publish", "upload a model folder to the Hub"),
}


def load(command: str) -> Callable[[Sequence[str], str], int]:
    """The `main` of a command, which takes its arguments and how the program is called, and returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # one that is ignored, as with nohup, stays so
        signal.signal(signal.SIGINT, interrupted)
    try:
        return importlib.import_module(COMMANDS[command][0]).main
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(*signal_and_frame: object) -> NoReturn:
    """Ends at once while packages load: a KeyboardInterrupt that comes where one of their objects is freed is lost."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def main() -> int:
    """Runs the command that the first argument names; returns the exit code."""
    try:
        return run()
    except KeyboardInterrupt:  # before the command runs; one that runs ends by itself
        interrupted()


def run() -> int:
    """The same, without an end for Ctrl-C."""
    name, *rest = sys.argv[1:] or [""]
    if name in COMMANDS:
        gc.disable()  # what is imported stays: looking through it again and again would be a third of the start
        command = load(name)
        gc.freeze()
        gc.enable()
        return command(rest, f"lite-whisper {name}")
    if name == "--version":
        print(f"lite-whisper {importlib.metadata.version('lite-whisper')}")
        return 0
    if name == "--completion":
        completion = importlib.import_module("lite_whisper.cli.completion")
        if len(rest) == 1 and rest[0] in completion.SHELLS:
            print(completion.script(rest[0]))
            return 0
        print(f"usage: lite-whisper --completion {{{','.join(completion.SHELLS)}}}", file=sys.stderr)
        return 2
    asked = name in ("-h", "--help")
    print(help_text() if asked else help_text().splitlines()[0], file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def help_text() -> str:
    """What `lite-whisper --help` prints."""
    commands = [f"  {command:14}{summary}" for command, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: lite-whisper {{{','.join(COMMANDS)}}} ...  (--help after a command explains it)",
            "",
            *commands,
            "",
            "  --version     print the version",
            "  --completion  print a script by which bash, zsh, fish or tcsh completes them",
        ]
    )
