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
HUB_FILES = {f"{part}_lite_whisper.py" for part in ("configuration", "inference", "kernels", "modeling", "padding")}
README_PROGRAM = next(step.text for step in steps() if step.page == "README.md" and step.language == "python")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty working folder, as of a user without a clone."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run(folder: Path, *words: object, program: str = "lite-whisper", code: int = 0) -> str:
    """Runs a program of the environment; returns its output."""
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
    sources = [path for path in (ROOT / "lite_whisper").rglob("*") if path.suffix in (".py", ".md", ".typed")]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    assert set(names) == expected | {"lite_whisper_commands.py"}
    assert {f"lite_whisper/{name}" for name in HUB_FILES} <= expected


def test_help_and_the_missing_miniature(empty: Path) -> None:
    assert "transcribe" in run(empty, "--help")
    output = run(empty, "convert", code=2)
    assert "the bundled miniature requires a clone of the repository" in output
    assert list(empty.iterdir()) == []


def test_a_conversion_and_the_quick_start_of_the_readme(empty: Path) -> None:
    shutil.copytree(EXAMPLES / "whisper-digits", empty / "whisper-digits")
    (empty / "recordings").mkdir()
    for path in sorted((EXAMPLES / "digits/calibration").glob("*.flac"))[:12]:
        shutil.copy(path, empty / "recordings")
    options = ["--dataset", "recordings", "--num-windows", 12, "--output"]
    convert = ["convert", "--base-model", "whisper-digits", "--recipe", "liteasr", *options]
    assert "written to lite-whisper-digits" in run(empty, *convert, "lite-whisper-digits")
    assert {path.name for path in (empty / "lite-whisper-digits").glob("*.py")} == HUB_FILES
    run(empty, "precompute-padding", "whisper-digits", *options, "whisper-base-padded")
    rows = (EXAMPLES / "digits/calibration/metadata.csv").read_text().splitlines()
    reference = next(row.split(",")[1] for row in rows if row.startswith("calibration_000"))
    program = f"{README_PROGRAM}\nimport sys\nassert 'lite_whisper' not in sys.modules  # only remote code ran"
    output = run(empty, "-c", program, program="python")
    assert set(output.split()) & set(reference.split()), output
