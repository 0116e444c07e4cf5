"""The wheel in an environment of its own, used from an empty folder; `make wheel` builds and installs it."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from documents import ROOT, steps

BIN = ROOT / ".venv-wheel/bin"
EXAMPLES = ROOT / "examples"
HUB_FILES = {f"{part}_lite_whisper.py" for part in ("configuration", "inference", "kernels", "modeling")}
OF_THE_README = next(step.text for step in steps() if step.page == "README.md" and step.language == "python")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder to work in, of a user without a clone."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run(folder: Path, *words: object, program: str = "lite-whisper", code: int = 0) -> str:
    """Runs a program of the environment; returns what it says."""
    hidden = ("PYTHON", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    result = subprocess.run(
        [BIN / program, *map(str, words)],
        cwd=folder,
        env=variables | {"HF_HOME": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    return result.stdout + (result.stderr if code else "")


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    (wheel,) = (ROOT / "build/wheel").glob("lite_whisper-*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    floors = [path.parent for path in ROOT.glob("*/__init__.py")]
    sources = [path for folder in floors for path in folder.glob("*") if path.suffix in (".py", ".md")]
    expected = {f"lite_whisper/{path.relative_to(ROOT)}" for path in sources}
    expected |= {f"lite_whisper/{name}" for name in (*HUB_FILES, "__init__.py", "__main__.py", "convert.py")}
    assert set(names) == expected | {"lite_whisper/py.typed", "lite_whisper_commands.py"}


def test_help_and_the_miniature_that_is_not_there(empty: Path) -> None:
    assert "transcribe" in run(empty, "--help")
    said = run(empty, "convert", code=2)
    assert "the bundled miniature only comes with a clone of the repository" in said
    assert list(empty.iterdir()) == []


def test_a_conversion_and_the_program_of_the_readme(empty: Path) -> None:
    shutil.copytree(EXAMPLES / "whisper-digits", empty / "whisper-digits")
    (empty / "speech").mkdir()
    for path in sorted((EXAMPLES / "digits/calibration").glob("*.flac"))[:4]:
        shutil.copy(path, empty / "speech")
    options = ["--model", "whisper-digits", "--dataset", "speech", "--num-samples", 4, "--recipe", "liteasr"]
    lite = "build/lite-whisper-digits"
    assert f"written to {lite}" in run(empty, "convert", *options, "--output", lite)
    assert {path.name for path in (empty / lite).glob("*.py")} == HUB_FILES
    name, wanted = (EXAMPLES / "digits/test/metadata.csv").read_text().splitlines()[1].split(",")[:2]
    (empty / "examples/digits/test").mkdir(parents=True)
    shutil.copy(EXAMPLES / "digits/test" / name, empty / "examples/digits/test")
    program = f"{OF_THE_README}\nimport sys\nassert 'lite_whisper' not in sys.modules  # what the model brought, ran"
    said = run(empty, "-c", program, program="python")
    assert len(set(said.split()) & set(wanted.split())) >= 0.7 * len(set(wanted.split()))
