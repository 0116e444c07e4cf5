"""Manifests round-trip, and damaged lines are reported."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.json_lines import append_lines, truncate_torn_line
from lite_whisper.evaluation.manifest import Utterance, manifest_path, read_manifest


def utterance(index: int) -> Utterance:
    text = "fünf \u2028 six"  # a line separator that does not end a line in JSON Lines
    return Utterance(index, f"clip {index}.flac", 1.5, 0.25, 0.125, 0.0625, text, "six", text, "Six.")


def test_lines_are_read_in_dataset_order(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_lines(path, [utterance(2), utterance(0)])
    append_lines(path, [utterance(1)])
    assert read_manifest(path) == [utterance(0), utterance(1), utterance(2)]
    lines = path.read_text().removesuffix("\n").split("\n")
    assert [json.loads(line)["index"] for line in lines] == [2, 0, 1]


def test_the_leaderboards_fields_and_name(tmp_path: Path) -> None:
    append_lines(tmp_path / "m.jsonl", [utterance(0)])
    line = json.loads((tmp_path / "m.jsonl").read_text())
    assert {"audio_filepath", "duration", "time", "text", "pred_text"} <= line.keys()
    path = manifest_path(tmp_path, "openai/whisper-tiny", "hf-audio/esb-datasets-test-only-sorted:ami:test")
    assert path.name == "MODEL_openai-whisper-tiny_DATASET_hf-audio-esb-datasets-test-only-sorted_ami_test.jsonl"


def test_a_truncated_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.jsonl"
    append_lines(path, [utterance(0), utterance(1)])
    whole = path.read_bytes()
    truncate_torn_line(path)
    assert path.read_bytes() == whole and not caplog.text
    with caplog.at_level(logging.WARNING):
        path.write_bytes(whole[:-7])
        truncate_torn_line(path)
    assert read_manifest(path) == [utterance(0)] and "incomplete last line" in caplog.text
    path.write_bytes(whole[:3])
    truncate_torn_line(path)
    assert read_manifest(path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line[:-5], "JSONDecodeError"),
        (lambda line: line.replace('"pred_text"', '"text_pred"'), "pred_text"),
        (lambda line: line.replace("0.25", '"fast"'), "time is 'fast'"),
        (lambda line: "[1]", "TypeError"),
    ],
)
def test_a_corrupt_line_is_reported(change, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_lines(path, [utterance(0), utterance(1), utterance(2)])
    lines = path.read_text().split("\n")
    lines[1] = change(lines[1])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"m\.jsonl line 2 is damaged or not a manifest line .*{said}"):
        read_manifest(path)


def test_lines_without_fallback_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    values = dataclasses.asdict(utterance(0))
    del values["fallback"]
    path.write_text(json.dumps(values) + "\n")
    assert read_manifest(path) == [utterance(0)]


def test_repeated_lines_and_missing_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_lines(path, [utterance(0), dataclasses.replace(utterance(0), text="other")])
    with pytest.raises(InputError, match="line 2 repeats utterance 0"):
        read_manifest(path)
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        read_manifest(tmp_path / "none.jsonl")
