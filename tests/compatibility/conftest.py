"""Models and audio for the tests that use remote code only, under both major versions of transformers."""

import os
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "build/compatibility"
DIGITS = ROOT / "examples/digits"
# One cache per process, as a process could read a module while another writes it.
os.environ["HF_MODULES_CACHE"] = str(ROOT / "build/modules" / os.environ.get("PYTEST_XDIST_WORKER", "alone"))


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder with the models `compressed` and `padded`."""
    if not MODELS.exists():
        pytest.exit("python tests/compatibility/build_models.py build/compatibility writes the models; run it first", 1)
    return MODELS


@pytest.fixture(scope="session")
def short():
    """Samples of four strings of digits, shorter than the window."""
    return [soundfile.read(DIGITS / f"test/test_{index:03}.flac", dtype="float32")[0] for index in range(4)]


@pytest.fixture(scope="session")
def long():
    """Samples of a file of many windows."""
    return soundfile.read(DIGITS / "longform/longform_000.flac", dtype="float32")[0]
