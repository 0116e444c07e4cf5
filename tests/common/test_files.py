"""Intermediate results are reused only if their settings are recorded and unchanged."""

from pathlib import Path

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.files import record_origin, working_folder


def test_a_folder_rejects_results_of_another_origin(tmp_path: Path) -> None:
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"model": "a", "language": "en"})
    (folder / "transcripts.jsonl").write_text("kept")
    record_origin(folder, {"model": "a", "language": "en"})
    with pytest.raises(InputError, match=r"language was en, now de.*remove the whole folder to start again"):
        record_origin(folder, {"model": "a", "language": "de"})


def test_results_without_origin_are_refused(tmp_path: Path) -> None:
    """Deleting the settings file does not make the remaining results usable."""
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"language": "en"})
    (folder / "transcripts.jsonl").write_text("kept")
    (folder / "origin.json").unlink()
    with pytest.raises(InputError, match=r"out\.unfinished does not record its settings.*remove the whole folder"):
        record_origin(folder, {"language": "de"})
    assert not (folder / "origin.json").exists()


def test_an_origin_without_results_is_replaced(tmp_path: Path) -> None:
    """A run that is killed before its first result leaves a settings file, which can be replaced."""
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"language": "en"})
    (folder / ".origin.json.123.tmp").write_text("half")
    record_origin(folder, {"language": "de"})
    (folder / "transcripts.jsonl").write_text("kept")
    record_origin(folder, {"language": "de"})


@pytest.mark.parametrize("result", [None, "training/checkpoint-1/weights"])
def test_a_failed_run_keeps_its_folder_only_if_it_holds_results(tmp_path: Path, result: str | None) -> None:
    with pytest.raises(KeyboardInterrupt), working_folder(tmp_path / "out") as work:
        record_origin(work, {})
        record_origin(work / "training", {})
        if result:
            (work / result).parent.mkdir()
            (work / result).write_text("")
        raise KeyboardInterrupt
    assert (tmp_path / "out.unfinished").exists() == (result is not None)
