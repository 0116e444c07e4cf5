"""Every recording gets its own valid file name, whatever its name is."""

import os
from pathlib import Path

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.files import check_writable
from lite_whisper.common.json_lines import append_lines
from lite_whisper.transcription.formats import Transcript
from lite_whisper.transcription.output import Output, file_names


def written(folder: Path, recordings: list[str]) -> dict[str, str]:
    """Writes transcripts of these recordings to a folder; returns its files by relative path."""
    lines = folder / "transcripts.jsonl"
    append_lines(lines, [Transcript(index, name, 1.0, f"text {index}") for index, name in enumerate(recordings)])
    output = Output.from_path(folder / "texts", "txt")
    output.write(lines)
    return {str(path.relative_to(output.path)): path.read_text() for path in output.path.rglob("*.txt")}


def test_rows_with_the_same_path_get_separate_files(tmp_path: Path) -> None:
    found = written(tmp_path, ["audio.wav", "audio.wav", "AUDIO.wav", "audio.wav"])
    assert found == {
        "audio.txt": "text 0\n",
        "audio-2.txt": "text 1\n",
        "AUDIO-3.txt": "text 2\n",
        "audio-4.txt": "text 3\n",
    }


def test_numbered_names_do_not_collide() -> None:
    names = file_names(["a.wav", "a.wav", "a-2.wav"], "txt")
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "name", ["x" * 400 + ".wav", "ö" * 200 + ".wav", "zero\0byte.wav", "lone\ud800.wav", "a\nb.wav"]
)
def test_invalid_file_names_become_valid(name: str, tmp_path: Path) -> None:
    names = file_names([name, name], "vtt")
    assert len(set(names)) == 2
    for each in names:
        assert each.isprintable() and len(os.fsencode(each)) <= 255
        (tmp_path / each).write_text("")


@pytest.mark.parametrize("name", ["x" * 250 + ".jsonl", "zero\0byte.jsonl"])
def test_an_invalid_output_name_is_rejected_early(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a valid file name; choose a shorter one"):
        check_writable(tmp_path / name)
