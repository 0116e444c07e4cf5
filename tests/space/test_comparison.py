"""`examples/space` without its page: timing of two models on a clip, and errors for unusable clips."""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from conftest import EXAMPLES

from lite_whisper.common.errors import InputError
from lite_whisper.serving.batches import RequestOptions
from lite_whisper.transcription.formats import Segment, Transcript

SPACE = EXAMPLES / "space"


@pytest.fixture(scope="module")
def comparison() -> Iterator[ModuleType]:
    """The module of that name in `examples/space`."""
    sys.path.insert(0, str(SPACE))
    import comparison

    yield comparison
    sys.path.remove(str(SPACE))


class Clock:
    """A fake clock, and models that advance it by a given time on every call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def model(self, name: str, window: float, seconds: list[float]) -> Any:
        clock, left = self, list(seconds)

        class Model:
            def __init__(self) -> None:
                self.window = window

            def submit(self, recording: Any, options: RequestOptions) -> "Future[Any]":
                clock.now += left.pop(0)
                clock.order.append(name)
                future: Future[Any] = Future()
                future.set_result((Transcript(0, "clip", recording.duration, f"{name} {options.language}"), None))
                return future

        return Model()


def test_models_alternate_and_the_fastest_round_after_the_warm_up_counts(
    comparison: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(comparison, "time", clock)
    models = {
        "stock": clock.model("stock", 30, [1.0, 6.0, 5.0]),
        "compressed": clock.model("compressed", 30, [9.0, 2.0, 3.0]),
    }
    clip = EXAMPLES / "digits/test/test_000.flac"
    outcomes = comparison.compare(models, str(clip), RequestOptions(language="en"))
    assert clock.order == ["stock", "compressed", "compressed", "stock", "stock", "compressed"]
    assert [outcome.transcript.text for outcome in outcomes.values()] == ["stock en", "compressed en"]
    assert {name: outcome.seconds for name, outcome in outcomes.items()} == {"stock": 5.0, "compressed": 2.0}
    assert outcomes["stock"].real_time_factor == pytest.approx(5.0 / soundfile.info(clip).duration)
    assert comparison.verdict(**outcomes) == "The texts differ. The compressed model is 2.50 times as fast."
    assert comparison.verdict(outcomes["stock"], outcomes["stock"]).startswith("The same text. ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"There is no audio yet\. Choose a file \(WAV, .*\), or record something\."),
        (b"", r"The file cannot be decoded \(.*\)\. Provide WAV, FLAC, Ogg or MP3, at most 60 seconds\."),
        (b"no audio" * 99, r"The file cannot be decoded \(.*\)\. Provide WAV, .*\."),
        (0.0, r"The file contains no audio\. Provide WAV, .*\."),
        (60.5, r"The file is longer than 60 seconds; split it\. Provide WAV, .*\."),
    ],
)
def test_unusable_clips(comparison: ModuleType, tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "clip.wav"
    if isinstance(content, float):
        soundfile.write(path, np.zeros(int(content * 8000), np.float32), 8000)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{reason}$"):
        comparison.read(None if content is None else str(path), 30.0)


def test_segment_rows(comparison: ModuleType) -> None:
    transcript = Transcript(0, "clip", 9.5, "one two", [Segment(0.0, 1.5, "one"), Segment(2.25, None, "two")])
    assert comparison.rows(transcript) == [["0.00", "1.50", "one"], ["2.25", "9.50", "two"]]


def test_the_space_and_its_requirements_pin_the_same_gradio() -> None:
    settings = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    (version,) = re.findall(r"^gradio==(\S+)$", (SPACE / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == version
    assert (SPACE / settings["app_file"]).is_file()
