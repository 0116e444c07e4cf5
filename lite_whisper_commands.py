"""
The console script `lite-whisper`.

It is a module outside the package so that `lite-whisper --help` answers at once: importing the package registers its
classes with transformers, which takes seconds.
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
    "convert": "compress a Whisper",
    "convert-presets": "compress a Whisper to all three preset sizes from one calibration",
    "sweep": "compare both recipes at several sizes",
    "profile": "benchmark low-rank layers on this machine",
    "recover": "recover accuracy by distillation from the base model",
    "precompute-padding": "precompute padding so that short clips run faster",
    "merge": "merge the low-rank factors into a stock Whisper",
    "upgrade": "rewrite a checkpoint of efficient-speech/ as a complete model folder",
    "export": "export a model to another runtime, such as ONNX Runtime",
    "transcribe": "transcribe recordings with any Whisper",
    "serve": "serve an OpenAI-compatible transcription API",
    "evaluate": "measure and compare error rates and speed",
    "report": "recompute the report of an evaluation from its manifests",
    "publish": "upload a model folder to the Hub",
}
"""Every command and its summary; the command `a-b` is implemented by `lite_whisper.cli.a_b`."""


def module_name(command: str) -> str:
    """The module that implements a command: its `build_parser` and its `main`."""
    return f"lite_whisper.cli.{command.replace('-', '_')}"


def load(command: str) -> Callable[[Sequence[str], str], int]:
    """Imports a command; returns its `main`, which takes arguments and program name and returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # keep SIGINT ignored where nohup has done so
        signal.signal(signal.SIGINT, exit_interrupted)
    try:
        return importlib.import_module(module_name(command)).main
    finally:
        signal.signal(signal.SIGINT, before)


def exit_interrupted(*signal_and_frame: object) -> NoReturn:
    """Exits at once: a KeyboardInterrupt raised while packages load may be lost in a finaliser."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def run_command(name: str, arguments: Sequence[str], program: str) -> int:
    """Imports and runs a command; returns the exit code."""
    try:
        gc.disable()  # imported modules stay alive: collecting while they load takes a third of the start-up time
        command = load(name)
        gc.freeze()
        gc.enable()
        return command(arguments, program)
    except KeyboardInterrupt:  # before the command handles it
        exit_interrupted()


def main() -> int:
    """Runs the command named by the first argument; returns the exit code."""
    name, *rest = sys.argv[1:] or [""]
    if name in COMMANDS:
        return run_command(name, rest, f"lite-whisper {name}")
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
    help_requested = name in ("-h", "--help")
    print(
        help_text() if help_requested else help_text().splitlines()[0],
        file=sys.stdout if help_requested else sys.stderr,
    )
    return 0 if help_requested else 2


def help_text() -> str:
    """The output of `lite-whisper --help`."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            f"usage: lite-whisper {{{','.join(COMMANDS)}}} ...",
            "",
            *(f"  {command:{width}}{summary}" for command, summary in COMMANDS.items()),
            "",
            f"  {'--version':{width}}print the version",
            f"  {'--completion':{width}}print a completion script for bash, zsh, fish or tcsh",
            "",
            "lite-whisper COMMAND --help shows the options of a command.",
        ]
    )
