"""Every recording has a file of its own, whatever it is called."""

import os
from pathlib import Path

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.files import check_writable
from lite_whisper.common.json_lines import append
from lite_whisper.transcription.formats import Transcript
from lite_whisper.transcription.output import Output, file_names


def written(folder: Path, recordings: list[str]) -> dict[str, str]:
    """What lies in the folder that the transcripts of these recordings are written to, by relative path."""
    lines = folder / "transcripts.jsonl"
    append(lines, [Transcript(index, name, 1.0, f"text {index}") for index, name in enumerate(recordings)])
    output = Output.named(folder / "texts", "txt")
    output.write(lines)
    return {str(path.relative_to(output.path)): path.read_text() for path in output.path.rglob("*.txt")}


def test_rows_that_share_a_path_have_a_file_each(tmp_path: Path) -> None:
    found = written(tmp_path, ["audio.wav", "audio.wav", "AUDIO.wav", "audio.wav"])
    assert found == {
        "audio.txt": "text 0\n",
        "audio-2.txt": "text 1\n",
        "AUDIO-3.txt": "text 2\n",
        "audio-4.txt": "text 3\n",
    }


def test_a_name_that_is_taken_by_numbering_is_not_given_twice() -> None:
    names = file_names(["a.wav", "a.wav", "a-2.wav"], "txt")
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "name", ["x" * 400 + ".wav", "ö" * 200 + ".wav", "zero\0byte.wav", "lone\ud800.wav", "a\nb.wav"]
)
def test_names_that_no_file_can_have_become_valid_ones(name: str, tmp_path: Path) -> None:
    names = file_names([name, name], "vtt")
    assert len(set(names)) == 2
    for each in names:
        assert each.isprintable() and len(os.fsencode(each)) <= 255
        (tmp_path / each).write_text("")


@pytest.mark.parametrize("name", ["x" * 250 + ".jsonl", "zero\0byte.jsonl"])
def test_an_output_without_a_valid_name_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no name for a file; choose a shorter one"):
        check_writable(tmp_path / name)
