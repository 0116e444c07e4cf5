"""`lite-whisper transcribe` against the transformers pipeline; broken and long files, interrupted runs."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from lite_whisper.cli.transcribe import main
from lite_whisper.transcription import transcriber
from lite_whisper.transcription.formats import Segment, Transcript, to_srt, to_txt, to_vtt
from lite_whisper.transcription.output import file_names

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "whisper-digits"
LONG = EXAMPLES / "digits/longform/longform_000.flac"
ENGLISH = {"task": "transcribe", "language": "en", "num_beams": 1}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Ten short files, one long and one broken, in two folders."""
    folder = tmp_path_factory.mktemp("recordings")
    for index in range(10):
        target = folder / ("monday" if index < 5 else "tuesday")
        target.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / f"digits/test/test_{index:03}.flac", target)
    shutil.copy(LONG, folder / "monday/meeting.flac")
    (folder / "tuesday/a_broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def expected(recordings: Path) -> dict[str, dict]:
    """The result of the pipeline for each file on its own."""
    recognizer = pipeline("automatic-speech-recognition", model=str(MODEL))
    found = {}
    for path in recordings.rglob("*.flac"):
        samples, _ = soundfile.read(path, dtype="float32")
        found[str(path)] = recognizer(samples, return_timestamps=True, generate_kwargs=ENGLISH)
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(transcriber, "BLOCK_SIZE", 4)


def transcribe(recordings: Path, output: Path, *options: str) -> int:
    command = [str(recordings), "--model", str(MODEL), "--output", str(output), "--language", "en", "--batch-size", "3"]
    return main([*command, *options])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(recordings: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    assert transcribe(recordings, output) == 0
    return output


def test_one_line_for_each_recording(recordings: Path, expected: dict[str, dict], undisturbed: Path) -> None:
    found = lines(undisturbed)
    assert [line["index"] for line in found] == list(range(12))
    assert [line["audio"] for line in found] == sorted(str(p) for p in recordings.rglob("*.*"))
    for line in found:
        if line["audio"].endswith(".wav"):
            assert "cannot be decoded" in line["error"] and "text" not in line
            continue
        reference = expected[line["audio"]]
        if not line["audio"].endswith("meeting.flac"):  # see test_long_recordings.py
            assert line["text"] == reference["text"].strip()
            assert [(s["start"], s["end"]) for s in line["segments"]] == [c["timestamp"] for c in reference["chunks"]]
        assert line["duration"] == pytest.approx(soundfile.info(line["audio"]).duration, abs=1e-3)
    assert [path.name for path in undisturbed.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("stopped_at", [0, 1, 3, 5])
def test_an_interrupted_run_is_resumed(
    stopped_at: int, recordings: Path, undisturbed: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    append_lines, calls = transcriber.append_lines, []

    def interrupted(path: Path, found: list) -> None:
        calls.append(len(found))
        if len(calls) > stopped_at:
            raise KeyboardInterrupt
        append_lines(path, found)

    monkeypatch.setattr(transcriber, "append_lines", interrupted)
    assert transcribe(recordings, tmp_path / "out.jsonl") == 130
    assert not (tmp_path / "out.jsonl").exists()
    stored = tmp_path / "out.jsonl.unfinished/transcripts.jsonl"
    monkeypatch.setattr(transcriber, "append_lines", append_lines)
    if stopped_at:
        with stored.open("ab") as file:
            file.write(b'{"index": 3, "aud')  # as after a power cut
        # Other options are rejected without losing anything.
        assert transcribe(recordings, tmp_path / "out.jsonl", "--timestamps", "word") == 1
        assert "timestamps was segment, now word" in capsys.readouterr().err
    else:
        assert list(tmp_path.iterdir()) == []  # nothing is kept before the first result
    read = []
    monkeypatch.setattr(
        transcriber, "_transcript", lambda r, result, f=transcriber._transcript: read.append(r) or f(r, result)
    )
    assert transcribe(recordings, tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed.read_bytes()
    assert len(read) <= 12 - sum(calls[:stopped_at]) + 2  # a partly finished batch runs again
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_results_of_other_settings_are_never_mixed(recordings: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Removing only the file that the error names does not make the run resume with the old lines."""
    append_lines, calls = transcriber.append_lines, []

    def interrupted(path: Path, found: list) -> None:
        calls.append(found)
        if len(calls) > 2:
            raise KeyboardInterrupt
        append_lines(path, found)

    with monkeypatch.context() as patch:
        patch.setattr(transcriber, "append_lines", interrupted)
        assert transcribe(recordings, tmp_path / "out.jsonl", "--task", "translate") == 130
    work = tmp_path / "out.jsonl.unfinished"
    assert transcribe(recordings, tmp_path / "out.jsonl") == 1
    errors = capsys.readouterr().err
    assert re.search(rf"error: {work} was created .* task was translate, now .* remove the whole folder", errors)
    (work / "origin.json").unlink()
    assert transcribe(recordings, tmp_path / "out.jsonl") == 1
    assert re.search(rf"error: {work} does not record .*; remove the whole folder", capsys.readouterr().err)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_mistyped_path_creates_no_files(recordings: Path, tmp_path: Path, capsys) -> None:
    assert transcribe(tmp_path / "recordigns", tmp_path / "out.jsonl") == 1
    errors = capsys.readouterr().err
    assert "recordigns; check the path" in errors and "--" not in errors.splitlines()[-1]  # sources are not an option
    assert list(tmp_path.iterdir()) == []


def test_the_summary_of_a_single_recording(recordings: Path, tmp_path: Path, capsys) -> None:
    assert transcribe(recordings / "monday/test_000.flac", tmp_path / "out.txt") == 0
    assert capsys.readouterr().out.startswith("1 recording transcribed\n")


def test_a_folder_of_subtitles(recordings: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert transcribe(recordings, tmp_path / "subtitles", "--format", "vtt") == 0
    files = {
        str(p.relative_to(tmp_path / "subtitles").with_suffix("")) for p in (tmp_path / "subtitles").rglob("*.vtt")
    }
    assert files == {str(p.relative_to(recordings).with_suffix("")) for p in recordings.rglob("*.flac")}
    cues = (tmp_path / "subtitles/monday/meeting.vtt").read_text().split("\n\n")
    segments = next(line["segments"] for line in lines(undisturbed) if line["audio"].endswith("meeting.flac"))
    assert cues[0] == "WEBVTT" and [cue.split("\n")[1] for cue in cues[1:-1]] == [
        s["text"] for s in segments if s["text"]
    ]


def test_word_timestamps_and_text_of_a_single_file(tmp_path: Path) -> None:
    command = [str(EXAMPLES / "digits/test/test_000.flac"), "--model", str(MODEL), "--language", "en"]
    assert main([*command, "--output", str(tmp_path / "words.jsonl"), "--timestamps", "word"]) == 0
    assert main([*command, "--output", str(tmp_path / "text.txt"), "--timestamps", "none"]) == 0
    (line,) = lines(tmp_path / "words.jsonl")
    text = (tmp_path / "text.txt").read_text().strip()
    assert [segment["text"] for segment in line["segments"]] == line["text"].split() and len(text.split()) > 1


def test_patterns(recordings: Path, tmp_path: Path, capsys) -> None:
    command = ["--model", str(MODEL), "--output", str(tmp_path / "out.jsonl"), "--language", "en"]
    assert main([str(recordings / "**/test_00[01]*"), *command]) == 0
    assert [Path(line["audio"]).name for line in lines(tmp_path / "out.jsonl")] == ["test_000.flac", "test_001.flac"]
    assert main([str(recordings / "*.mp4"), *command, "--overwrite"]) == 1
    assert "no file matches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(np.full(16_000, np.nan), "contains NaN"), (np.zeros(0), "contains no audio")],
)
def test_no_readable_recording(samples: np.ndarray, reason: str, tmp_path: Path, capsys) -> None:
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    command = [str(tmp_path / "a.wav"), "--model", str(MODEL), "--output", str(tmp_path / "out.srt")]
    assert main(command) == 1
    assert re.search(f"none of the 1 recordings could be read.*{reason}", capsys.readouterr().err)
    assert not (tmp_path / "out.srt").exists()


@pytest.mark.parametrize(
    ("output", "options", "reason"),
    [
        ("out.srt", [], "can only hold one recording, and there may be several"),
        ("exists.jsonl", [], "choose another output, or overwrite it (--overwrite)"),
        ("full", ["--format", "srt"], "is a folder that is not empty"),
    ],
)
def test_invalid_outputs_are_rejected(
    output: str, options: list[str], reason: str, recordings: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "exists.jsonl").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").write_text("kept")
    assert transcribe(recordings, tmp_path / output, *options) == 1
    assert reason in capsys.readouterr().err
    assert (tmp_path / "exists.jsonl").read_text() == (tmp_path / "full/kept").read_text() == "kept"


@pytest.mark.parametrize(
    "options",
    [
        ["--output", "folder"],
        ["--output", "out.jsonl", "--format", "srt"],
        ["--output", "out.srt", "--timestamps", "none"],
        ["--output", "out.srt", "--language", "klingon"],
    ],
)
def test_incompatible_options(options: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["a.wav", "--model", str(MODEL), *options])
    assert end.value.code == 2


def test_without_ray(recordings: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "lite_whisper.transcription.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert transcribe(recordings, tmp_path / "out.jsonl", "--ray") == 1
    assert re.search(
        r"error: transcription on a cluster requires Ray .*pip install 'lite-whisper\[ray\]' \(--ray\)",
        capsys.readouterr().err,
    )


def test_transcript_formats() -> None:
    segments = [Segment(0.0, 1.5, " one"), Segment(2.0, 3.0, " "), Segment(3661.25, None, "two ")]
    transcript = Transcript(0, "a.wav", 3662.0, "one two", segments)
    assert to_txt(transcript) == "one two\n"
    assert to_srt(transcript) == ("1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n01:01:01,250 --> 01:01:02,000\ntwo\n\n")
    assert to_vtt(transcript) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n\n01:01:01.250 --> 01:01:02.000\ntwo\n\n"
    )


def test_file_names_in_a_folder() -> None:
    names = file_names(["/calls/a/x.wav", "/calls/b/x.wav", "/calls/b/x.mp3", "/calls/../calls/c.v2.wav"], "srt")
    assert names == ["a/x.srt", "b/x.wav.srt", "b/x.mp3.srt", "c.v2.srt"]
    assert file_names(["../../x.wav"], "txt") == ["x.txt"]
