"""Recordings longer than a window, split at silences, against the transcripts of the clips they consist of."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip, Entry
from lite_whisper.cli.transcribe import main
from lite_whisper.evaluation.word_error_rate import word_errors
from lite_whisper.models.folders import load_model
from lite_whisper.transcription import long_recordings, transcriber
from lite_whisper.transcription.formats import Transcript
from lite_whisper.transcription.long_recordings import Chunk, group_recordings, merge_results
from lite_whisper.transcription.output import Output
from lite_whisper.transcription.transcribe import TranscriptionSettings, make_transcriber, transcribe_to_output

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "whisper-digits"
PAUSE = 7  # seconds; long enough to be dropped
MARGIN = 0.64  # seconds of a pause that are kept on either side: half a second, and half of the smoothing


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Digit strings without silence at either end, shorter than a window and a multiple of 20 ms long."""
    found = []
    for clip in AudioDataset([str(EXAMPLES / "digits/test")]):
        loud = np.flatnonzero(np.abs(clip.samples) > 0.01)
        found.append(clip.samples[loud[0] : loud[0] + (loud[-1] - loud[0]) // 320 * 320])
    return [clip for clip in found if len(clip) < 4.5 * SAMPLING_RATE][:9]


@pytest.fixture(scope="module")
def recordings(clips: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three long recordings of three strings each, a short recording between them, and one of silence."""
    folder = tmp_path_factory.mktemp("recordings")
    pause = np.zeros(PAUSE * SAMPLING_RATE, np.float32)
    for number in range(3):
        parts = [pause, *(part for clip in clips[3 * number : 3 * number + 3] for part in (clip, pause))]
        soundfile.write(folder / f"long_{number}.flac", np.concatenate(parts), SAMPLING_RATE)
    soundfile.write(folder / "long_1_short.flac", clips[0], SAMPLING_RATE)
    soundfile.write(folder / "silence.flac", np.zeros(20 * SAMPLING_RATE), SAMPLING_RATE)
    return folder


@pytest.fixture(scope="module")
def separate(clips: list[np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    """The results of the pipeline for each string alone, with its margins of silence, for each `timestamps`."""
    recognizer = pipeline("automatic-speech-recognition", model=str(MODEL))
    options = {"task": "transcribe", "language": "en", "num_beams": 1}
    padded = [np.pad(clip, round(MARGIN * SAMPLING_RATE)) for clip in clips]
    return {
        name: [recognizer(clip, return_timestamps=times, generate_kwargs=options) for clip in padded]
        for name, times in (("none", False), ("segment", True), ("word", "word"))
    }


def settings(folder: Path, output: Path, **options: Any) -> TranscriptionSettings:
    defaults: dict[str, Any] = {"language": "en", "batch_size": 4, "device": "cpu"}
    return TranscriptionSettings([str(folder)], str(MODEL), Output.from_path(output), **{**defaults, **options})


def transcribed(folder: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    transcribe_to_output(settings(folder, output, **options))
    return [json.loads(line) for line in output.read_text().splitlines()]


def starts(clips: Sequence[np.ndarray]) -> list[float]:
    """Start of each clip in a long recording made of them, in seconds."""
    lengths = [0.0, *(len(clip) / SAMPLING_RATE for clip in clips[:-1])]
    return [float(start) for start in np.cumsum([PAUSE + length for length in lengths])]


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
def test_texts_are_joined_and_times_shifted(
    timestamps: str, recordings: Path, clips: list[np.ndarray], separate, tmp_path: Path
) -> None:
    # In a batch, transformers aligns the words of all but the longest clip with tokens after their end as well.
    batch_size = 1 if timestamps == "word" else 4
    lines = transcribed(recordings, tmp_path / "out.jsonl", timestamps=timestamps, batch_size=batch_size)
    assert [Path(line["audio"]).stem for line in lines] == ["long_0", "long_1", "long_1_short", "long_2", "silence"]
    for number, line in enumerate(lines[place] for place in (0, 1, 3)):
        part = slice(3 * number, 3 * number + 3)
        references = separate[timestamps][part]
        assert line["text"] == " ".join(reference["text"].strip() for reference in references)
        expected = []
        for start, clip, reference in zip(starts(clips[part]), clips[part], references, strict=True):
            begin, last = start - MARGIN, start + len(clip) / SAMPLING_RATE + MARGIN
            for chunk in reference.get("chunks", [{"text": reference["text"], "timestamp": (0.0, None)}]):
                first, end = chunk["timestamp"]
                end = last if end is None else min(begin + end, last)
                expected.append((chunk["text"].strip(), min(begin + first, end), end))
        found = [(segment["text"], segment["start"], segment["end"]) for segment in line["segments"]]
        assert [text for text, *_ in found] == [text for text, *_ in expected]
        np.testing.assert_allclose([t for _, *t in found], [t for _, *t in expected], atol=0.002)


@pytest.mark.parametrize("loudness", [0, 0.1])
def test_silence_and_steady_noise_give_no_text(loudness: float, tmp_path: Path) -> None:
    samples = loudness * np.random.default_rng(0).standard_normal(20 * SAMPLING_RATE)
    soundfile.write(tmp_path / "a.flac", samples, SAMPLING_RATE)
    (line,) = transcribed(tmp_path / "a.flac", tmp_path / "out.jsonl", timestamps="none")
    assert (line["text"], line["segments"], line["duration"]) == ("", [], 20.0)
    (whole,) = transcribed(tmp_path / "a.flac", tmp_path / "whole.jsonl", sequential=True)
    assert bool(whole["text"]) == bool(loudness)  # sequential decoding hallucinates on noise


def test_chunks_of_continuous_speech_against_the_references(tmp_path: Path) -> None:
    dataset = list(AudioDataset([str(EXAMPLES / "digits/longform")]))
    lines = transcribed(EXAMPLES / "digits/longform", tmp_path / "out.jsonl")
    for clip, line in zip(dataset, lines, strict=True):
        assert clip.text and word_errors(clip.text, line["text"]) <= 0.1 * len(clip.text.split())
        times = [time for segment in line["segments"] for time in (segment["start"], segment["end"])]
        assert times == sorted(times) and times[-1] <= line["duration"] and times[-1] > 0.9 * line["duration"]


def test_sequential_decoding_equals_the_pipeline(recordings: Path, tmp_path: Path) -> None:
    recognizer = pipeline("automatic-speech-recognition", model=str(MODEL))
    options = {"task": "transcribe", "language": "en", "num_beams": 1}
    command = [str(recordings), "--model", str(MODEL), "--language", "en", "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--sequential"]) == 0
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        found = json.loads(line)
        samples, _ = soundfile.read(found["audio"], dtype="float32")
        reference = recognizer(samples, return_timestamps=True, generate_kwargs=options)
        assert found["text"] == reference["text"].strip()
        assert [(s["start"], s["end"]) for s in found["segments"]] == [c["timestamp"] for c in reference["chunks"]]


def test_a_run_with_other_settings_is_not_resumed(recordings: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    append_lines = transcriber.append_lines

    def interrupted(path: Path, found: list[Transcript]) -> None:
        append_lines(path, found)
        if found:
            raise KeyboardInterrupt

    command = [str(recordings), "--model", str(MODEL), "--language", "en", "--output", str(tmp_path / "out.jsonl")]
    with monkeypatch.context() as patch:
        patch.setattr(transcriber, "append_lines", interrupted)
        assert main(command) == 130
    assert main([*command, "--sequential"]) == 1
    assert "sequential was False, now True" in capsys.readouterr().err


def test_a_partly_finished_group_runs_again(recordings: Path, tmp_path: Path) -> None:
    made, _ = make_transcriber(settings(recordings, tmp_path / "out.jsonl"), *load_model(str(MODEL)), "cpu")
    block = made.read(list(enumerate(AudioDataset([str(recordings)]).entries())))
    undisturbed = [transcript for found in made.transcripts(block) for transcript in found]
    assert len(undisturbed) == 5
    for done in ({0, 2}, {2, 3, 4}):
        found = [transcript for found in made.transcripts(block, done) for transcript in found]
        assert found == [transcript for transcript in undisturbed if transcript.index not in done]
    assert list(made.transcripts(block, {0, 1, 2, 3, 4})) == [[]]


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], []),
        ([60.0], [[0]]),
        ([900, 800, 100, 60, 60], [[0, 1, 2], [3, 4]]),
        ([60, 7200, 60, 60], [[0], [1], [2, 3]]),
        ([1800, 1700, 1700, 1700], [[0], [1, 2], [3]]),
    ],
)
def test_groups_reach_half_an_hour(durations: list[float], expected: list[list[int]]) -> None:
    assert list(group_recordings(durations)) == expected


def test_groups_are_read_one_at_a_time(recordings: Path, tmp_path: Path, monkeypatch) -> None:
    """Memory must not grow with the number of long recordings."""
    made, _ = make_transcriber(settings(recordings, tmp_path / "out.jsonl"), *load_model(str(MODEL)), "cpu")
    block = made.read(list(enumerate(AudioDataset([str(recordings)]).entries())))
    together = {t.index: t for found in made.transcripts(block) for t in found}
    log: list[str] = []
    read = Entry.read
    monkeypatch.setattr(Entry, "read", lambda entry: log.append(Path(entry.location).stem) or read(entry))
    monkeypatch.setattr(long_recordings, "GROUP_SECONDS", 40)
    for found in made.transcripts(block):
        assert all(transcript == together[transcript.index] for transcript in found)
        log.append(f"{len(found)} done")
    assert log == ["0 done", "1 done", "long_0", "long_1", "2 done", "long_2", "silence", "2 done"]


class Recorded:
    """Records the languages passed to `generate()` of a model, batch by batch."""

    def __init__(self, model: WhisperForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
        self.languages: list[Any] = []
        generate = model.generate

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.languages.append(kwargs.get("language", "not set"))
            return generate(*args, **kwargs)

        monkeypatch.setattr(model, "generate", recorded)


def test_a_long_recording_has_one_language(
    recordings: Path, processor: WhisperProcessor, tmp_path: Path, monkeypatch
) -> None:
    model, _ = load_model(str(MODEL))
    recorded = Recorded(model, monkeypatch)
    detections: list[Any] = []

    def detected(features: torch.Tensor) -> torch.Tensor:
        detections.append(features)
        return torch.tensor([model.generation_config.lang_to_id[name] for name in ("<|en|>", "<|de|>", "<|fr|>")])

    monkeypatch.setattr(model, "detect_language", detected)
    made, _ = make_transcriber(settings(recordings, tmp_path / "o.jsonl", language=None), model, processor, "cpu")
    read = made.read(list(enumerate(AudioDataset([str(recordings)]).entries())))
    assert [len(found) for found in made.transcripts([r for r in read if r.clip is None])] == [0, 4]
    assert len(detections) == 1 and len(detections[0]) == 3  # not for the silent recording
    counts = Counter(language for batch in recorded.languages for language in batch)
    assert counts == {"<|en|>": 3, "<|de|>": 3, "<|fr|>": 3}


def test_the_language_is_detected_in_the_first_chunk(recordings: Path, processor, tmp_path: Path, monkeypatch) -> None:
    model, _ = load_model(str(MODEL))
    clip = AudioDataset([str(EXAMPLES / "digits/test")])
    samples = next(iter(clip)).samples
    detect, seen = model.detect_language, []

    def detected(features: torch.Tensor) -> torch.Tensor:
        seen.append(features)
        return detect(features)

    monkeypatch.setattr(model, "detect_language", detected)
    recorded = Recorded(model, monkeypatch)
    made, _ = make_transcriber(settings(recordings, tmp_path / "o.jsonl", language=None), model, processor, "cpu")
    languages = made._languages([Chunk(0, 1.0, Clip("a", samples)), Chunk(0, 9.0, Clip("b", samples[::-1].copy()))])
    features = processor.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    assert len(seen) == 1 and torch.equal(seen[0], features)
    assert languages == {0: "<|en|>"} and recorded.languages == []


@pytest.mark.parametrize(("multilingual", "language"), [(True, "en"), (False, "not set")])
def test_a_language_that_is_set_or_the_only_one_is_not_detected(
    multilingual: bool, language: str, recordings: Path, processor: WhisperProcessor, tmp_path: Path, monkeypatch
) -> None:
    model, _ = load_model(str(MODEL))
    model.generation_config.is_multilingual = multilingual
    monkeypatch.setattr(model, "detect_language", None)
    seen: list[Any] = []

    def generate(input_features: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.append(kwargs.get("language", "not set"))
        return torch.full((len(input_features), 2), model.generation_config.eos_token_id)

    monkeypatch.setattr(model, "generate", generate)
    made, _ = make_transcriber(settings(recordings, tmp_path / "o.jsonl"), model, processor, "cpu")
    read = made.read(list(enumerate(AudioDataset([str(recordings)]).entries())))
    assert [len(found) for found in made.transcripts([r for r in read if r.clip is None])] == [0, 4]
    assert all(value == language or set(value) == {language} for value in seen) and len(seen) == 3


def test_the_fallback_repeats_a_broken_chunk(padded: Path, recordings: Path, tmp_path: Path, monkeypatch) -> None:
    def lines(name: str) -> tuple[int, list[dict[str, Any]]]:
        output = Output.from_path(tmp_path / name)
        chosen = TranscriptionSettings([str(recordings / "long_*[0-9].flac")], str(padded), output, device="cpu")
        summary = transcribe_to_output(chosen)
        return summary.fallbacks, [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    count, undisturbed = lines("undisturbed.jsonl")
    assert count == 0 and not any(line["fallback"] for line in undisturbed)
    victim = undisturbed[1]["segments"][0]["text"]
    monkeypatch.setattr(
        transcriber,
        "needs_fallback",
        lambda model, _, texts: [p for p, text in enumerate(texts) if text.startswith(victim)],
    )
    positions: list[bool] = []
    results = transcriber.Transcriber._results

    def recorded(self: Any, clips: Sequence[Clip], options: dict[str, Any]) -> list[dict[str, Any]]:
        positions.append(self._recognizer.model.get_encoder().uses_constant_padding)
        assert len(options["generate_kwargs"]["language"]) == len(clips)
        return results(self, clips, options)

    monkeypatch.setattr(transcriber.Transcriber, "_results", recorded)
    count, again = lines("again.jsonl")
    assert sum(line["fallback"] for line in again) == count >= 1 and again[1]["fallback"]
    assert positions.count(False) >= 1 and positions.count(True) == 2


CHUNKS = [Chunk(0, start, Clip("a", np.zeros(round(2 * SAMPLING_RATE)))) for start in (1.0, 4.0)]


@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "one two"), (None, "one two"), ("<|de|>", "one two"), ("zh", "onetwo"), ("<|ja|>", "onetwo")],
)
def test_chunks_are_joined_as_the_language_requires(language: str | None, text: str) -> None:
    assert merge_results(CHUNKS, [{"text": " one"}, {"text": "two "}], language)["text"] == text


def test_times_stay_within_their_chunk() -> None:
    segments = [{"text": " a", "timestamp": (0.0, 1.5)}, {"text": " b", "timestamp": (1.5, None)}]
    late = [{"text": " c", "timestamp": (None, 0.5)}, {"text": " d", "timestamp": (2.5, 29.0)}]
    whole = merge_results(
        CHUNKS, [{"text": " a b", "chunks": segments}, {"text": " c d", "chunks": late, "fallback": True}]
    )
    assert [chunk["timestamp"] for chunk in whole["chunks"]] == [(1.0, 2.5), (2.5, 3.0), (4.0, 4.5), (6.0, 6.0)]
    assert whole["fallback"]
    assert merge_results([], []) == {"text": "", "chunks": [], "fallback": False}


def test_the_language_of_the_text_decides_about_spaces(recordings: Path, tmp_path: Path) -> None:
    def gaps(**options: Any) -> list[str]:
        (line, *_) = transcribed(recordings, tmp_path / f"{options}.jsonl", timestamps="none", **options)
        first, second, third = (segment["text"] for segment in line["segments"])
        assert first and second and third
        return [space for space in ("", " ") if line["text"] == first + space + second + space + third]

    assert gaps(language="zh") == [""]
    assert gaps(language="zh", task="translate") == gaps(language="en") == [" "]
