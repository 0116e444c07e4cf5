"""Fallback to all positions: which transcripts trigger it, and its effect."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import Clip
from lite_whisper.cli.transcribe import main
from lite_whisper.evaluation import decoding
from lite_whisper.evaluation.decoding import transcribe, transcribe_batch
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.fallback import needs_fallback
from lite_whisper.transcription import transcriber
from lite_whisper.transcription.output import Output
from lite_whisper.transcription.transcribe import TranscriptionSettings, transcribe_to_output

LOOP = " seven eight" * 40
LONG = " ".join(f"{number * number * 7919}" for number in range(200))


@pytest.fixture
def model(padded: Path) -> LiteWhisperForConditionalGeneration:
    return LiteWhisperForConditionalGeneration.from_pretrained(padded).eval()


@pytest.fixture
def passes(model) -> Iterator[list[int]]:
    """The number of positions that each pass of the encoder computes."""
    seen: list[int] = []
    hook = model.get_encoder().layers[0].fc1.register_forward_hook(lambda m, inputs, y: seen.append(y.shape[1]))
    yield seen
    hook.remove()


def whole(model, processor: WhisperProcessor, clips: Sequence[Clip]) -> list[str]:
    """Transcripts with all positions computed."""
    model.use_constant_padding(False)
    texts, _, fallback = transcribe_batch(model, processor, clips)
    model.use_constant_padding()
    assert not fallback
    return texts


def test_repetitions_and_overlong_transcripts_need_fallback(model, processor, base_model) -> None:
    texts = ["", "one two three", LOOP, LONG, "All's well that ends well."]
    assert needs_fallback(model, processor.tokenizer, texts) == [2, 3]
    assert needs_fallback(model.use_constant_padding(False), processor.tokenizer, texts) == []
    assert needs_fallback(base_model, processor.tokenizer, texts) == []


def test_an_evaluation_falls_back(model, passes, processor, test_clips, monkeypatch) -> None:
    clips = sorted(test_clips, key=lambda clip: len(clip.samples))[:3]
    reference = whole(model, processor, clips)
    passes.clear()
    monkeypatch.setattr(decoding, "needs_fallback", lambda *_: [0, 2])
    model.get_encoder().padding_states.states.data.zero_()  # so that the first attempt differs
    texts, _, fallback = transcribe_batch(model, processor, clips)
    positions = model.config.max_source_positions
    detection_and_text = 2
    assert [count < positions for count in passes] == [True] * detection_and_text + [False] * detection_and_text
    assert fallback == [0, 2]
    assert [texts[0], texts[2]] == [reference[0], reference[2]]
    assert model.get_encoder().uses_constant_padding
    assert transcribe(model, processor, clips, batch_size=3).fallbacks == 2


def test_a_transcription_falls_back_and_counts(padded: Path, digits: Path, tmp_path, monkeypatch, capsys) -> None:
    def transcribed(name: str) -> tuple[int, list[tuple[str, bool]]]:
        settings = TranscriptionSettings(
            [str(digits)], str(padded), Output(tmp_path / name, "jsonl", False), device="cpu"
        )
        summary = transcribe_to_output(settings)
        lines = (json.loads(line) for line in (tmp_path / name).read_text().splitlines())
        return summary.fallbacks, [(line["text"], line["fallback"]) for line in lines]

    count, undisturbed = transcribed("undisturbed.jsonl")
    assert count == 0 and not any(fallback for _, fallback in undisturbed)
    monkeypatch.setattr(transcriber, "needs_fallback", lambda *_: [1])
    seen: list[bool] = []
    results = transcriber.Transcriber._results

    def recording_padding(self, clips, options):
        seen.append(self._recognizer.model.get_encoder().uses_constant_padding)
        return results(self, clips, options)

    monkeypatch.setattr(transcriber.Transcriber, "_results", recording_padding)
    count, again = transcribed("again.jsonl")
    assert count == 1 and seen == [True, False]
    assert sorted(fallback for _, fallback in again) == [False] * (len(again) - 1) + [True]
    assert [text for text, _ in again] == [text for text, _ in undisturbed]
    assert main([str(digits), "--model", str(padded), "--output", str(tmp_path / "o.jsonl"), "--device", "cpu"]) == 0
    assert "1 of them with the fallback to all positions" in capsys.readouterr().out


def test_generate_falls_back_on_all_positions_first(model, passes, processor, test_clips) -> None:
    clip = min(test_clips, key=lambda clip: len(clip.samples))
    features = processor(clip.samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    options = {"language": "en", "task": "transcribe", "compression_ratio_threshold": 0.0}  # every attempt fails
    positions = model.config.max_source_positions

    def generated(temperature: float | tuple[float, ...]) -> torch.Tensor:
        passes.clear()
        return model.generate(**features, **options, temperature=temperature)

    with_fallback = generated((0.0, 0.0))
    assert [count < positions for count in passes] == [True, False, False]
    assert model.get_encoder().uses_constant_padding
    generated((0.0,))
    assert [count < positions for count in passes] == [True]
    model.use_constant_padding(False)
    assert torch.equal(with_fallback, generated((0.0, 0.0)))
    assert passes == [positions] * 2 and not model.get_encoder().uses_constant_padding


def test_a_stock_whisper_is_left_alone(base_model: WhisperForConditionalGeneration, processor, test_clips) -> None:
    assert transcribe_batch(base_model, processor, test_clips[:2])[2] == []
