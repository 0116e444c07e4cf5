"""Models and audio for the tests that run under both major versions of transformers, with remote code alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import transformers

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "build/compatibility"
DIGITS = ROOT / "examples/digits"


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder with the models `full` and `compressed`; only transformers 5 writes it, 4.57 finds it there."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        command = [sys.executable, str(Path(__file__).with_name("build_models.py")), str(MODELS)]
        subprocess.run(command, check=True, capture_output=True)
    elif not MODELS.exists():
        pytest.exit("run these tests under transformers 5 first (make test does): it writes the models", 1)
    return MODELS


@pytest.fixture(scope="session")
def short():
    """Samples of four strings of digits, shorter than the window."""
    return [soundfile.read(DIGITS / f"test/test_{index:03}.flac", dtype="float32")[0] for index in range(4)]


@pytest.fixture(scope="session")
def long():
    """Samples of a file of many windows."""
    return soundfile.read(DIGITS / "longform/longform_000.flac", dtype="float32")[0]
