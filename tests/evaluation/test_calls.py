"""Chunks of calls are scored as whole calls."""

from pathlib import Path

import jiwer
import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.common.json_lines import append_lines
from lite_whisper.evaluation.manifest import CallChunk, Utterance, read_manifest, write_settings
from lite_whisper.evaluation.report import differences, score

CALLS = {"a": "one two three four", "b": "five six seven"}
PREDICTIONS = [("b", 0, "five"), ("a", 1, "three"), ("a", 2, ""), ("a", 0, "one two"), ("b", 1, "six eight")]


def manifest(
    folder: Path, name: str, predictions: list[tuple[str, int, str]] = PREDICTIONS, **settings: object
) -> Path:
    """Writes a manifest of the chunks in this order, with its settings."""
    path = folder / f"{name}.jsonl"
    numbers = (2.0, 0.5, 0.25, 0.125)
    chunks = [
        CallChunk(
            i, f"{call}{place}", *numbers, CALLS[call], text, CALLS[call].title(), text.title(), False, call, place
        )
        for i, (call, place, text) in enumerate(predictions)
    ]
    append_lines(path, chunks)
    write_settings(path, {"model": name, "dataset": "calls", "skipped": []} | settings)
    return path


def test_chunks_are_joined_in_their_order(tmp_path: Path) -> None:
    (evaluation,) = score([manifest(tmp_path, "m")])
    texts = [(each.audio_filepath, each.text, each.pred_text) for each in evaluation.utterances]
    assert texts == [("a", CALLS["a"], "one two three"), ("b", CALLS["b"], "five six eight")]
    result = evaluation.result
    assert (result.substitutions, result.deletions, result.insertions, result.words) == (1, 1, 0, 7)
    assert result.wer == pytest.approx(100 * jiwer.wer(list(CALLS.values()), ["one two three", "five six eight"]))
    assert (result.rtfx, result.audio_seconds) == (4, 10)
    assert (result.encoder_seconds, result.decoder_seconds) == (1.25, 0.625)


def test_differences_are_computed_over_calls(tmp_path: Path) -> None:
    other = [(call, place, text.replace("eight", "seven")) for call, place, text in PREDICTIONS]
    found = differences(score([manifest(tmp_path, "m"), manifest(tmp_path, "other", other)]))
    assert [difference.points for *_, difference in found] == [pytest.approx(-100 / 7)]


def test_incomplete_calls_are_rejected(tmp_path: Path) -> None:
    for name, settings in (("skipped", {"skipped": ["a1.wav: cannot be read"]}), ("unfinished", {"skipped": None})):
        with pytest.raises(InputError, match=rf"{name}\.jsonl lacks chunks of its calls"):
            score([manifest(tmp_path, name, **settings)])


def test_manifest_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    numbers = (2.0, 0.5, 0.25, 0.125)
    lines = [
        Utterance(0, "u", *numbers, "x", "x", "X", "X"),
        CallChunk(1, "c", *numbers, "x", "x", "X", "X", True, "a", 3),
    ]
    append_lines(path, lines)
    assert read_manifest(path) == lines and "parent_id" not in path.read_text().split("\n")[0]
    path.write_text(path.read_text().replace('"chunk_index": 3', '"chunk_index": "3"'))
    with pytest.raises(InputError, match=r"line 2 .*chunk_index is '3'"):
        read_manifest(path)
