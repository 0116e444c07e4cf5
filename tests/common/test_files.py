"""What is kept for a later run says from what it was made, or is not used."""

from pathlib import Path

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.files import record_origin, unfinished


def test_a_folder_is_used_for_one_origin_only(tmp_path: Path) -> None:
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"model": "a", "language": "en"})
    (folder / "transcripts.jsonl").write_text("kept")
    record_origin(folder, {"model": "a", "language": "en"})
    with pytest.raises(InputError, match=r"language en there, de here.*remove the whole folder to begin anew"):
        record_origin(folder, {"model": "a", "language": "de"})


def test_without_its_origin_nothing_is_used(tmp_path: Path) -> None:
    """Who removes the file that a refusal names must not go on with the rest."""
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"language": "en"})
    (folder / "transcripts.jsonl").write_text("kept")
    (folder / "origin.json").unlink()
    with pytest.raises(InputError, match=r"out\.unfinished does not say what .*remove the whole folder"):
        record_origin(folder, {"language": "de"})
    assert not (folder / "origin.json").exists()


def test_an_origin_without_results_binds_nobody(tmp_path: Path) -> None:
    """A kill before the first result leaves one."""
    folder = tmp_path / "out.unfinished"
    record_origin(folder, {"language": "en"})
    (folder / ".origin.json.123.tmp").write_text("half")
    record_origin(folder, {"language": "de"})
    (folder / "transcripts.jsonl").write_text("kept")
    record_origin(folder, {"language": "de"})


@pytest.mark.parametrize("result", [None, "training/checkpoint-1/weights"])
def test_a_failure_leaves_a_folder_only_with_a_result_in_it(tmp_path: Path, result: str | None) -> None:
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out") as work:
        record_origin(work, {})
        record_origin(work / "training", {})
        if result:
            (work / result).parent.mkdir()
            (work / result).write_text("")
        raise KeyboardInterrupt
    assert (tmp_path / "out.unfinished").exists() == (result is not None)
