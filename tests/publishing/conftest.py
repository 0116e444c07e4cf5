"""Fixtures of the tests of publishing: a compressed miniature as a model folder, and its figures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_whisper.cli import convert, evaluate

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, base: Path, digits: Path) -> Path:
    """A compressed miniature as written by a conversion."""
    folder = tmp_path_factory.mktemp("models") / "lite-digits"
    arguments = ["--base-model", base, "--dataset", ROOT / "examples/digits/calibration", "--output", folder]
    arguments += ["--recipe", "liteasr", "--num-windows", 4, "--thresholds", "0.9:0.95", "--rank-multiple", 4]
    arguments += ["--evaluate", digits]
    assert convert.main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture
def lite(original: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(original, tmp_path / "lite-digits"))


@pytest.fixture(scope="session")
def manifests(original: Path, base: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Manifests of the miniature and the compressed one on two sets."""
    folder = tmp_path_factory.mktemp("results")
    other = Path(shutil.copytree(digits, folder / "other:config:split"))
    arguments = [base, original, "--dataset", digits, other, "--output", folder / "results", "--normalizer", "basic"]
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    return sorted((folder / "results").glob("MODEL_*.jsonl"), key=lambda path: "lite" in path.name)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited before it tried again, without waiting."""
    seconds: list[float] = []

    class Clock:
        sleep: Callable[[float], None] = staticmethod(seconds.append)

    monkeypatch.setattr("huggingface_hub.utils._http.time", Clock)
    return seconds
