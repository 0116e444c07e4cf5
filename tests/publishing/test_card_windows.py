"""The card states the audio that was used; its command repeats the requested options."""

import re
from pathlib import Path

from conversions import arguments, report

from lite_whisper.cli.convert import main
from lite_whisper.publishing.card import render_card


def calibration_audio(card: str) -> str:
    return " ".join(re.search(r"^Calibration audio: ([^.]*)", card, flags=re.MULTILINE)[1].split())


def test_fewer_windows_than_asked_for(tmp_path: Path, base: Path, speech: Path) -> None:
    """Six clips, each of one window; and the same from the file that keeps what they told."""
    moments = tmp_path / "moments.safetensors"
    for name in ("audio", "moments"):
        output = tmp_path / name
        more = ["--base-model", base, "--num-windows", "100", "--calibration-file", moments]
        assert main(arguments(output, speech, *more)) == 0
        assert report(output)["calibration"]["windows"] == 6
        card = (output / "README.md").read_text()
        assert calibration_audio(card) == "6 windows of speech"
        assert "--num-windows 100 " in card


def test_as_many_windows_as_asked_for(converted: Path) -> None:
    assert report(converted)["calibration"]["windows"] == 4
    assert calibration_audio((converted / "README.md").read_text()) == "4 windows of speech"


def test_one_window_and_an_unknown_number(converted: Path) -> None:
    """Of models of earlier versions, and of those still to be made, only what was asked for is known."""
    compression = report(converted)
    compression["calibration"]["windows"] = 1
    assert calibration_audio(str(render_card("lite", compression))) == "1 window of speech"
    del compression["calibration"]["windows"]
    assert calibration_audio(str(render_card("lite", compression))) == "up to 4 windows of speech"
