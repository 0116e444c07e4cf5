"""What a terminal gets: one line for Ctrl-C while packages load, and no escapes out of the names of files."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conversions import CLIPS, MODEL, ROOT, environment

from lite_whisper.cli import exit_codes
from lite_whisper.common.errors import InputError

CONSOLE_SCRIPT = str(Path(sys.executable).with_name("lite-whisper"))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8])
@pytest.mark.parametrize(
    "command",
    [[CONSOLE_SCRIPT, "convert"], [sys.executable, str(ROOT / "convert.py")]],
    ids=["console script", "convert.py"],
)
def test_ctrl_c_while_packages_load_is_one_line(command: list[str], seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "lite")],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().startswith("interrupted") and said.strip().count("\n") == 0


def test_control_characters_are_shown_and_not_sent() -> None:
    name = "\x1b]0;title\x07\x9b2J\r\u202e\udc80é 漢.wav\n"
    assert exit_codes.printable(name) == "\\x1b]0;title\\x07\\x9b2J\\r\\u202e\\udc80é 漢.wav\n"


def test_errors_and_warnings_name_files_without_their_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def fail() -> None:
        logging.getLogger("lite_whisper").warning("skipped %s", "\x1b[2Ja.wav")
        raise InputError("there is no \x1b[2Jb.wav")

    assert exit_codes.run(argparse.ArgumentParser(), fail) == 1
    said = capsys.readouterr().err
    assert "skipped \\x1b[2Ja.wav" in said and "error: there is no \\x1b[2Jb.wav" in said and "\x1b" not in said


@pytest.mark.slow
def test_a_clip_with_escapes_in_its_name_is_skipped_without_them(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.flac").write_bytes((CLIPS / "calibration_000.flac").read_bytes())
    (tmp_path / "set" / os.fsdecode(b"\x1b[31mred\xff.wav")).write_bytes(b"no audio")
    command = [CONSOLE_SCRIPT, "transcribe", "--model", MODEL, tmp_path / "set", "--output", tmp_path / "out.jsonl"]
    result = subprocess.run([str(word) for word in command], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "\\x1b[31mred" in result.stderr and "\x1b[31m" not in result.stderr + result.stdout
