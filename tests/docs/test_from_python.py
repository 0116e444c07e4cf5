"""The model built on the page From Python can be used like any Whisper."""

from pathlib import Path

import pytest
import soundfile
from documents import ROOT, steps
from transformers import pipeline


def test_a_pipeline_runs_the_model_built_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = (step.text for step in steps() if step.language == "python" and "build/lite-from-python" in step.text)
    monkeypatch.chdir(ROOT)
    exec(program.replace("build/lite-from-python", str(tmp_path)).replace("num_windows=40", "num_windows=8"), {})
    recognizer = pipeline("automatic-speech-recognition", model=str(tmp_path), trust_remote_code=True)
    audio, _ = soundfile.read(ROOT / "examples/digits/test/test_000.flac")
    assert set(recognizer(audio)["text"].split()) & {"one", "two"}
