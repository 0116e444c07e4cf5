"""Robustness checks, on hand-made timestamps and on the miniature."""

import copy

import numpy as np
import pytest

from lite_whisper.cli.evaluate import print_robustness
from lite_whisper.evaluation.robustness import (
    RobustnessOutputs,
    TimedText,
    collect_outputs,
    compare,
    sounds_without_speech,
    timestamp_shifts,
)


def test_timestamp_shifts_of_matching_texts() -> None:
    base = [
        [TimedText("one", 0.0, 0.5), TimedText("two", 0.5, 1.0), TimedText("three", 1.0, None)],
        [TimedText("four", 0.2, 0.4)],
    ]
    ours = [
        [TimedText("one", 0.1, 0.5), TimedText("zwei", 0.7, 0.9), TimedText("three", 1.3, 2.0)],
        [TimedText("five", 9.0, 9.5)],
    ]
    np.testing.assert_allclose(sorted(timestamp_shifts(ours, base)), [0.0, 0.1, 0.3], atol=1e-12)
    assert len(timestamp_shifts([[]], [[]])) == 0


def test_compare_hand_made_outputs() -> None:
    texts = [[TimedText("one", 0.0, 1.0)], [TimedText("two", 0.0, 1.0)]]
    later = [[TimedText("one", 0.2, 1.2)], [TimedText("two", 0.2, 1.4)]]
    silence = {"silence": 0}
    base = RobustnessOutputs(texts, texts, silence, ["en", "de"], ["one two", "three four"])
    found = RobustnessOutputs(later, texts, {"silence": 5}, ["en", "nl"], ["one two", "three five"])
    row = compare(found, base)
    assert row["word_shift_median"] == pytest.approx(0.2) and row["word_shift_p95"] == pytest.approx(0.37)
    assert row["segment_shift_p95"] == 0 and row["words_in_silence"] == 5
    assert row["other_language"] == 50 and row["translation_wer"] == 25
    english_only = compare(RobustnessOutputs(None, texts, silence, None, None), base)
    assert english_only["word_shift_median"] is english_only["other_language"] is None


def test_sounds_without_speech() -> None:
    sounds = sounds_without_speech(2.0)
    assert {len(clip.samples) for clips in sounds.values() for clip in clips} == {32_000}
    assert all(not clip.samples.any() for clip in sounds["silence"])
    spectrum = np.abs(np.fft.rfft(sounds["hum"][0].samples))
    assert spectrum.argmax() == 100  # 50 Hz


@pytest.mark.slow
def test_a_model_against_itself(base_model, processor, test_clips, capsys) -> None:
    outputs = collect_outputs(copy.deepcopy(base_model), processor, test_clips[:3], str.strip)
    assert outputs.languages == ["en"] * 3
    assert outputs.words and [len(words) for words in outputs.words][:2] == [
        4,
        9,
    ]  # the model drops a digit in the third
    for words, clip in zip(outputs.words, test_clips, strict=False):
        assert 0 <= words[0].start < words[-1].start <= len(clip.samples) / 16_000
    row = compare(outputs, outputs)
    assert row["word_shift_p95"] == row["segment_shift_p95"] == row["other_language"] == row["translation_wer"] == 0
    print_robustness({"whisper-digits": row})
    assert "words_in_silence" in capsys.readouterr().out
