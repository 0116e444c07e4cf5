"""Shell completion for `lite-whisper`."""

import argparse
import importlib
from pathlib import Path

import shtab

from lite_whisper_commands import COMMANDS, module_name

SHELLS = tuple(shtab.SUPPORTED_SHELLS)
PATH_OPTIONS = ("model", "models", "base_model", "dataset", "sources", "evaluate")  # a path or a Hub id


def script(shell: str) -> str:
    """
    Returns the completion script of a shell, which completes commands, options and file names.

    Args:
        shell (`str`): one of `SHELLS`.
    """
    parser = argparse.ArgumentParser(prog="lite-whisper")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        command = importlib.import_module(module_name(name)).build_parser(f"lite-whisper {name}")
        commands.add_parser(name, parents=[command], add_help=False, help=summary)
        for action in command._actions:
            if action.type is Path or action.dest in PATH_OPTIONS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
