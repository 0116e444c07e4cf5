"""Existing outputs and failing writes: nothing is lost, and no partial output remains."""

import errno
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conversions import COPIED, ROOT, WRITTEN, arguments, contents, environment, only_message, run

from lite_whisper.cli.convert import main


@pytest.mark.parametrize(
    ("names", "content", "options", "message"),
    [
        (["config.json", "notes.txt"], "{}", [], "--overwrite"),
        (["notes.txt"], "mine", ["--overwrite"], "not a folder with config"),
        (["notes.txt"], "mine", [], "not a folder with config"),
        ([], "mine", ["--overwrite"], "not a folder with config"),
    ],
    ids=["model without --overwrite", "no model", "no model, without --overwrite", "a file"],
)
def test_an_existing_output_is_rejected_and_unchanged(
    names: list[str],
    content: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    speech: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "old"
    if names:
        output.mkdir()
    for path in [output / name for name in names] or [output]:
        path.write_text(content)
    before = contents(tmp_path)
    assert run(*arguments(output, speech, *options)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(message, said) and str(output) in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("old", ["nothing", "empty folder", "model"])
def test_the_result_replaces_the_output(
    old: str, tmp_path: Path, speech: Path, moments_file: Path, converted: Path
) -> None:
    output = tmp_path / "new" / "lite"
    if old != "nothing":
        output.mkdir(parents=True)
    if old == "model":
        for name in ("config.json", "stale.bin"):
            (output / name).write_text("{}")
    options = ["--overwrite"] if old == "model" else []
    assert main(arguments(output, speech, "--calibration-file", moments_file, *options)) == 0
    assert {path.name for path in output.iterdir()} == COPIED | WRITTEN
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted.*run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
    ],
    ids=["Ctrl-C", "full disk"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_changes_nothing(
    error: BaseException,
    code: int,
    message: str,
    overwrite: bool,
    tmp_path: Path,
    speech: Path,
    moments_file: Path,
    converted: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        # By now the rest of the folder has been written, under another name.
        assert [path.name for path in tmp_path.rglob("model.safetensors")]
        raise error

    monkeypatch.setattr("lite_whisper.conversion.saving._plot_ranks", fail)
    if overwrite:
        (tmp_path / "lite").mkdir()
        (tmp_path / "lite" / "config.json").write_text("{}")
    before = contents(tmp_path)
    options = ["--calibration-file", moments_file, *(["--overwrite"] if overwrite else [])]
    assert run(*arguments(tmp_path / "lite", speech, *options)) == code
    assert re.search(message, only_message(capsys.readouterr().err))
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite" / "config.json").write_text("{}")
    before = contents(tmp_path)
    process = subprocess.run(
        [sys.executable, ROOT / "convert.py", *arguments(tmp_path / "lite", speech, "--overwrite")],
        # No file may grow beyond 2 MB: the tokenizer can be written, the weights cannot.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert re.search(r"^error: .*; free some space or choose another disk", only_message(process.stderr))
    assert contents(tmp_path) == before
