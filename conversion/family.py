"""The command `lite-whisper family`: the three checkpoints of a base model, from one calibration."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from .. import convert
from ..arguments import parse_arguments
from ..common.errors import exit_code
from ..common.files import check_same, unfinished
from ..models.compression_json import COMPRESSION, public_name
from ..publishing.command import publish_folder

PRESETS = {"acc": "-acc", "plain": "", "fast": "-fast"}
"""What the name of a checkpoint ends in, by its size."""


def checkpoint_name(base: str, preset: str) -> str:
    """What a checkpoint of a base model is called, as the published ones are: lite-whisper-small-acc."""
    return f"lite-{Path(public_name(base)).name}{PRESETS[preset]}"


def run(base: str, output: Path, owner: str | None, options: Sequence[str], program: str) -> None:
    """
    Converts a base model into its three checkpoints; those that exist are kept.

    Args:
        base (`str`): Hub id or folder of the Whisper.
        output (`Path`): the folder in which the three model folders are written.
        owner (`str`, *optional*): the user or organisation on the Hub to publish them under.
        options (`Sequence[str]`): further arguments of `convert.py`.
        program (`str`): for messages on wrong arguments.

    Raises:
        InputError: as in `convert.py`, or a checkpoint that exists was made with other options.
    """
    with unfinished(output / "calibration") as work:
        for preset in PRESETS:
            name = checkpoint_name(base, preset)
            fixed = ["--model", base, "--preset", preset, "--output", str(output / name)]
            fixed += ["--moments", str(work / "calibration.safetensors")]
            fixed += ["--push-to-hub", f"{owner}/{name}"] if owner else []
            arguments = parse_arguments([*fixed, *options], program)
            report = output / name / COMPRESSION
            if arguments.overwrite or not report.exists():
                convert.run(arguments)
                continue
            kept = json.loads(report.read_text())
            wanted = convert.calibration_settings(arguments, kept["calibration"]["encoder_weights"])
            wanted["datasets"] = [public_name(source) for source in arguments.dataset]
            wanted["rank_multiple"] = arguments.rank_multiple
            check_same({**kept["calibration"], **kept["recipe"]}, wanted, report)
            print(f"{output / name} exists and is kept")
            if owner:
                publish_folder(arguments, output / name, arguments.push_to_hub)


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper family") -> int:
    """Runs `lite-whisper family`; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(
        prog=program,
        description="Convert a Whisper into its checkpoints acc, plain and fast from one calibration. "
        "All other options are those of lite-whisper convert.",
    )
    parser.add_argument("--base", required=True, help="Hub id or folder of a Whisper, for example openai/whisper-small")
    parser.add_argument("--output", type=Path, required=True, help="the folder in which the three are written")
    parser.add_argument("--push-to-hub", metavar="ORG", help="publish the three under this user or organisation")
    arguments, options = parser.parse_known_args(argv)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments.base, arguments.output, arguments.push_to_hub, options, program))
