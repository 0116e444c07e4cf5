"""What the tests of publishing share: a compressed miniature as a folder, and its figures."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import TOKEN, HubStandIn

from lite_whisper import convert
from lite_whisper.cli import evaluate

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of the test strings."""
    folder = tmp_path_factory.mktemp("sets") / "digits"
    folder.mkdir()
    source = ROOT / "examples/digits/test"
    listing = (source / "metadata.csv").read_text().splitlines(keepends=True)[:9]
    (folder / "metadata.csv").write_text("".join(listing))
    for line in listing[1:]:
        shutil.copy(source / line.split(",")[0], folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with a card that names licence and languages."""
    folder = tmp_path_factory.mktemp("base") / MODEL.name
    shutil.copytree(MODEL, folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\nlanguage:\n- en\n- de\n---\n# whisper-digits\n")
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, base: Path, digits: Path) -> Path:
    """A compressed miniature as `convert.py` writes it."""
    folder = tmp_path_factory.mktemp("models") / "lite-digits"
    arguments = ["--model", base, "--dataset", ROOT / "examples/digits/calibration", "--output", folder]
    arguments += ["--recipe", "liteasr", "--num-samples", 4, "--thresholds", "0.9:0.95", "--rank-multiple", 4]
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
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A Hub to which this process is logged in."""
    with HubStandIn({}, tokens={TOKEN: "write", "hf_reader": "read"}) as stand_in:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stand_in.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stand_in


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited before it tried again, without waiting."""
    seconds: list[float] = []

    class Clock:
        sleep: Callable[[float], None] = staticmethod(seconds.append)

    monkeypatch.setattr("huggingface_hub.utils._http.time", Clock)
    return seconds
