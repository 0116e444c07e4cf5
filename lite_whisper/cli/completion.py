"""Shell completion of the console script."""

import argparse
import importlib
from pathlib import Path

import shtab

from lite_whisper_commands import COMMANDS, module_name

SHELLS = tuple(shtab.SUPPORTED_SHELLS)


def script(shell: str) -> str:
    """
    The completion script of a shell, for commands, options and files.

    Args:
        shell (`str`): one of `SHELLS`.
    """
    parser = argparse.ArgumentParser(prog="lite-whisper")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        command = importlib.import_module(module_name(name)).build_parser(f"lite-whisper {name}")
        commands.add_parser(name, parents=[command], add_help=False, help=summary)
        for action in command._actions:  # how shtab is told that a value is a file
            if action.type is Path or action.dest in (
                "model",
                "models",
                "base_model",
                "dataset",
                "sources",
                "evaluate",
            ):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
