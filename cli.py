"""The console script `lite-whisper`."""

import sys

from lite_whisper import convert

COMMANDS = {"convert": convert.main}


def main() -> int:
    """Runs the command that the first argument names; returns the exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: lite-whisper {{{','.join(COMMANDS)}}} ... (--help after a command explains it)", file=sys.stderr)
        return 2
    return COMMANDS[sys.argv[1]](sys.argv[2:])
