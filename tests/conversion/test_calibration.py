"""Calibration: saved and reused by `--calibration-file`, and announced."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import CLIPS, MODEL, arguments, contents, only_message, run, unnamed_contents

from lite_whisper.cli.convert import main
from lite_whisper.conversion import calibration


@pytest.mark.slow
def test_saved_moments_replace_the_audio(tmp_path: Path, speech: Path) -> None:
    audio, moments = tmp_path / "audio", tmp_path / "new" / "moments.safetensors"
    shutil.copytree(speech, audio)
    other = ["--thresholds", "0.9:0.99", "--rank-multiple", "8"]
    assert main(arguments(tmp_path / "direct", audio, *other)) == 0
    assert main(arguments(tmp_path / "first", audio, "--calibration-file", moments)) == 0
    assert [path.name for path in moments.parent.iterdir()] == [moments.name]
    shutil.rmtree(audio)
    assert main(arguments(tmp_path / "again", audio, "--calibration-file", moments, *other)) == 0
    # Nor need the dataset, or how much of it was used, be told again.
    unnamed = [
        "--base-model",
        str(MODEL),
        "--output",
        str(tmp_path / "unnamed"),
        "--calibration-file",
        str(moments),
        *other,
    ]
    assert main(unnamed) == 0
    direct = unnamed_contents(tmp_path / "direct")
    assert json.loads(direct["compression.json"] or b"")["recipe"]["thresholds"] == [0.9, 0.99]
    for name in ("again", "unnamed"):
        folder = unnamed_contents(tmp_path / name)
        assert folder.keys() == direct.keys()
        assert json.loads(folder["compression.json"] or b"") == json.loads(direct["compression.json"] or b"")
        assert [file for file in direct if folder[file] != direct[file]] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "4"], r"seed was 3, now 4"),
        (["--noise", "0:40"], r"noise was \[\], now \[0.0, 40.0\]"),
        (["--num-windows", "5"], r"num_windows was 4, now 5"),
        (["--dtype", "bfloat16"], r"dtype was float32, now bfloat16"),
        (["--dataset", str(CLIPS)], rf"datasets was .*speech.*, now .*{CLIPS}.*"),
    ],
)
def test_moments_of_other_settings_are_rejected(
    options: list[str],
    message: str,
    tmp_path: Path,
    speech: Path,
    converted: Path,
    moments_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = moments_file.read_bytes()
    assert run(*arguments(tmp_path / "lite", speech, "--calibration-file", moments_file, *options)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(message, said) and said.count(", now ") == 1 and str(moments_file) in said
    assert contents(tmp_path) == {} and moments_file.read_bytes() == before


@pytest.mark.slow
def test_saved_moments_serve_both_recipes(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensitivities are added to the file of the moments; neither is computed again."""
    reused = ["--calibration-file", tmp_path / "moments.safetensors", "--num-windows", "2"]
    default = ["--recipe", "loss-aware", "--ratio", "0.3", "--rank-multiple", "4", "--noise", "none"]
    assert main(arguments(tmp_path / "published", speech, *reused)) == 0
    monkeypatch.setattr("lite_whisper.conversion.calibration.collect_moments", None)
    assert main(arguments(tmp_path / "first", speech, *reused, *default)) == 0
    monkeypatch.setattr("lite_whisper.conversion.calibration.collect_sensitivities", None)
    assert main(arguments(tmp_path / "again", speech, *reused, *default)) == 0
    first, again = (unnamed_contents(tmp_path / name) for name in ("first", "again"))
    assert first == again
    assert main(arguments(tmp_path / "published-again", speech, *reused)) == 0
    assert unnamed_contents(tmp_path / "published-again") == unnamed_contents(tmp_path / "published")


@pytest.mark.slow
def test_moments_survive_an_interruption_of_the_second_pass(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path / "lite", speech, "--ratio", "0.3", "--recipe", "loss-aware", "--num-windows", "2")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(calibration, "collect_sensitivities", interrupt)
        assert run(*given) == 130
    monkeypatch.setattr(calibration, "collect_moments", None)
    assert run(*given) == 0


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("seconds", "said"), [(40.0, "calibration takes about 10 minutes"), (3.0, "")])
def test_a_long_calibration_is_announced(base_model, monkeypatch, capsys, seconds: float, said: str) -> None:
    """Two batches of four windows, the first of which takes the encoder so long, cost 15 passes over four windows."""
    clock = iter((0.0, seconds))
    monkeypatch.setattr(calibration, "now", lambda device: next(clock))
    calibration._announce_duration(base_model, [torch.zeros(4, 80, 600)] * 2, 8)
    assert capsys.readouterr().err.strip() == said
