"""The console script `lite-whisper`."""

import sys

from lite_whisper import convert
from lite_whisper.conversion import family
from lite_whisper.conversion import profile as time_table
from lite_whisper.evaluation import command as evaluation
from lite_whisper.publishing import command as publishing
from lite_whisper.training import command as training
from lite_whisper.transcription import command as transcription

COMMANDS = {
    "convert": convert.main,
    "family": family.main,
    "profile": time_table.main,
    "recover": training.main,
    "transcribe": transcription.main,
    "evaluate": evaluation.main,
    "score": evaluation.main_score,
    "publish": publishing.main,
}


def main() -> int:
    """Runs the command that the first argument names; returns the exit code."""
    name, *rest = sys.argv[1:] or [""]
    if name not in COMMANDS:
        asked = name in ("-h", "--help")
        usage = f"usage: lite-whisper {{{','.join(COMMANDS)}}} ... (--help after a command explains it)"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return COMMANDS[name](rest, f"lite-whisper {name}")


if __name__ == "__main__":  # accelerate launch -m lite_whisper.cli
    sys.exit(main())
