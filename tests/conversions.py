"""Conversions of the miniature as the tests run them, and what comes out."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from lite_whisper.cli.convert import main

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples/whisper-digits"
CLIPS = ROOT / "examples/digits/calibration"
TEST_CLIPS = ROOT / "examples/digits/test"
WINDOWS = 4
ENCODER = "model.encoder."
SILENCE = np.zeros(100_000)
NOT_A_NUMBER = np.full(100_000, np.nan)
PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"]
COPIED = {
    "added_tokens.json",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
WRITTEN = {
    "README.md",
    "compression.json",
    "config.json",
    "configuration_lite_whisper.py",
    "inference_lite_whisper.py",
    "kernels_lite_whisper.py",
    "model.safetensors",
    "modeling_lite_whisper.py",
    "padding_lite_whisper.py",
    "ranks.png",
}


def arguments(output: Path, speech: Path, *more: str | Path) -> list[str]:
    """The command line of a small conversion by the published recipe; what `more` repeats counts."""
    options = ["--base-model", MODEL, "--output", output, "--num-windows", WINDOWS, "--seed", 3, "--recipe", "liteasr"]
    dataset = [] if "--dataset" in more else ["--dataset", speech]
    return [str(option) for option in (*options, *dataset, *more)]


def report(folder: Path) -> dict[str, Any]:
    """The folder's `compression.json`."""
    return json.loads((folder / "compression.json").read_text())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too; folders are None."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def unnamed_contents(folder: Path) -> dict[str, bytes | None]:
    """The same of a model folder without its card, which tells the folder's name."""
    return {name: data for name, data in contents(folder).items() if name != "README.md"}


def run(*options: str) -> int:
    """Runs the command line in this process; returns the exit code."""
    try:
        return main(options)
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def only_message(stderr: str) -> str:
    """What stderr says besides progress bars and warnings of audio left out; fails unless that is one line."""
    lines = [line.strip("\x1b[A ") for line in re.split(r"[\r\n]+", stderr) if "%|" not in line]
    noise = ("skipped ", "left out ")
    messages = [line for line in lines if line and not line.startswith(noise)]
    assert len(messages) == 1, stderr
    return messages[0]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
