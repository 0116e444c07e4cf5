"""Evaluating into a manifest: order, batches, interruption and memory change nothing."""

import dataclasses
import io
import logging
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip, Entry
from lite_whisper.evaluation import evaluate as runner
from lite_whisper.evaluation.evaluate import evaluate
from lite_whisper.evaluation.manifest import Utterance, read_manifest

ROOT = Path(__file__).parents[2]


class Dataset(AudioDataset):
    """Clips that are in memory."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        super().__init__([])
        entries = [Entry(clip.name, partial(encoded, clip), clip.text, clip.name) for clip in clips]
        self._sources = [[lambda: iter(entries)]]


def encoded(clip: Clip) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, clip.samples, SAMPLING_RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def clips(test_clips: list[Clip]) -> list[Clip]:
    """Twelve strings, and a clip of several windows among them."""
    long = next(iter(AudioDataset([str(ROOT / "examples/digits/longform")])))
    return [*test_clips[:5], long, *test_clips[5:11]]


def said(path: Path) -> list[tuple[int, str, str]]:
    return [(u.index, u.text, u.pred_text) for u in read_manifest(path)]


@pytest.fixture(scope="module")
def undisturbed(base_model, processor, clips, tmp_path_factory) -> Path:
    """The manifest of a run in batches of four."""
    path = tmp_path_factory.mktemp("undisturbed") / "m.jsonl"
    assert evaluate(base_model, processor, Dataset(clips), path, str.strip, 4) == 0
    return path


def test_a_manifest_holds_what_the_model_says(base_model, processor, clips, undisturbed) -> None:
    lines = read_manifest(undisturbed)
    assert [line.index for line in lines] == list(range(12))
    for line, clip in zip(lines, clips, strict=True):
        assert line.duration == pytest.approx(len(clip.samples) / 16_000)
        assert (line.audio_filepath, line.reference) == (clip.name, clip.text)
        assert 0 < line.encoder_time < line.time and 0 < line.decoder_time < line.time
        assert line.encoder_time + line.decoder_time <= line.time
    features = processor(clips[3].samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    tokens = base_model.generate(**features, task="transcribe", num_beams=1)
    assert lines[3].prediction == processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert len(lines[5].pred_text.split()) > 20  # all windows of the long clip


@pytest.mark.parametrize("batch_size", [1, 12])
def test_the_batch_size_changes_nothing(batch_size, base_model, processor, clips, undisturbed, tmp_path) -> None:
    evaluate(base_model, processor, Dataset(clips), tmp_path / "m.jsonl", str.strip, batch_size)
    assert said(tmp_path / "m.jsonl") == said(undisturbed)


def test_small_chunks_change_nothing(base_model, processor, clips, undisturbed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "BLOCK_SIZE", 3)
    evaluate(base_model, processor, Dataset(clips), tmp_path / "m.jsonl", str.strip, 4)
    assert said(tmp_path / "m.jsonl") == said(undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_goes_on(seed, base_model, processor, clips, undisturbed, tmp_path, monkeypatch) -> None:
    """Killed after any batch, or within the writing of a line."""
    generator = random.Random(seed)
    path = tmp_path / "m.jsonl"
    append_lines, left = runner.append_lines, generator.randint(0, 2)

    def stop(path: Path, utterances: list[Utterance]) -> None:
        nonlocal left
        append_lines(path, utterances)
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "append_lines", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(base_model, processor, Dataset(clips), path, str.strip, 4)
    contents = path.read_bytes()
    path.write_bytes(contents[: generator.randint(0, len(contents))])
    left = 100
    evaluate(base_model, processor, Dataset(clips), path, str.strip, 4)
    assert said(path) == said(undisturbed)
    before = path.read_bytes()
    evaluate(base_model, processor, Dataset(clips), path, str.strip, 4)
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_halved(
    error, base_model, processor, clips, undisturbed, tmp_path, monkeypatch, caplog
) -> None:
    transcribe = runner.transcribe_batch

    def at_most_three(model, processor, batch, decoding):
        if len(batch) > 3:
            raise error
        return transcribe(model, processor, batch, decoding)

    monkeypatch.setattr(runner, "transcribe_batch", at_most_three)
    with caplog.at_level(logging.WARNING):
        evaluate(base_model, processor, Dataset(clips), tmp_path / "m.jsonl", str.strip, 8)
    assert said(tmp_path / "m.jsonl") == said(undisturbed)
    assert "out of memory with 8 clips per batch; continuing with 4" in caplog.text


def test_other_failures_and_single_clips_are_raised(base_model, processor, clips, tmp_path, monkeypatch) -> None:
    for error in (RuntimeError("shapes do not match"), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(*more, error=error):
            raise error

        monkeypatch.setattr(runner, "transcribe_batch", fail)
        with pytest.raises(type(error), match=str(error)):
            evaluate(base_model, processor, Dataset(clips[:1]), tmp_path / "m.jsonl", str.strip)


def test_empty_references_are_left_out_and_counted(base_model, processor, clips, tmp_path) -> None:
    changed = [
        dataclasses.replace(clips[0], text="  "),
        clips[1],
        dataclasses.replace(clips[2], text="ignore time segment in scoring"),
    ]
    assert evaluate(base_model, processor, Dataset(changed), tmp_path / "m.jsonl", str.strip) == 2
    assert [line.index for line in read_manifest(tmp_path / "m.jsonl")] == [1]
