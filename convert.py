"""The main program: compresses the encoder of a Whisper and writes a complete model folder."""

import sys

from lite_whisper_commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("convert", sys.argv[1:], program="convert.py"))
