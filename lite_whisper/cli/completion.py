"""Completion of the console script in a shell."""

import argparse
import importlib
from pathlib import Path

import shtab

from .lite_whisper_commands import COMMANDS

SHELLS = tuple(shtab.SUPPORTED_SHELLS)


def script(shell: str) -> str:
    """
    The script by which a shell completes commands, options and files.

    Args:
        shell (`str`): one of `SHELLS`.
    """
    parser = argparse.ArgumentParser(prog="lite-whisper")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, (module, summary) in COMMANDS.items():
        of_command = importlib.import_module(module).build_parser(f"lite-whisper {name}")
        commands.add_parser(name, parents=[of_command], add_help=False, help=summary)
        for action in of_command._actions:  # shtab's way to say what an option takes
            if action.type is Path or action.dest in ("model", "models", "dataset", "sources", "evaluate"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
