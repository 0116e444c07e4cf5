"""Exit codes: interrupts, a full disk, wrong options."""

import argparse
import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conversions import CLIPS, ROOT, arguments, contents, environment, only_message
from safetensors import SafetensorError

from lite_whisper.cli import exit_codes


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
    ],
    ids=str,
)
def test_a_full_disk_is_reported_with_advice(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_codes.run(argparse.ArgumentParser(), fail) == 1
    assert re.search(r"^error: .*; free some space or choose another disk", capsys.readouterr().err)


@pytest.mark.slow
def test_ctrl_c_while_calibrating(tmp_path: Path) -> None:
    many = ["--dataset", *[str(CLIPS)] * 20, "--num-windows", "1200", "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "convert.py", *arguments(tmp_path / "new" / "lite", CLIPS, *many)],
        # Where pytest runs in the background of a shell, its children would inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr and process.stdout
        said = ""
        for line in process.stderr:  # a progress bar ends in a carriage return, which is a line's end here
            said += line
            if re.search(r"calibration: .* [1-9]\d*/1200", line):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert re.search("interrupted.*run the same command again", only_message(said))
    assert "1200/1200" not in said and contents(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "stream", "message"),
    [
        ([str(Path(sys.executable).with_name("lite-whisper")), "convert", "--help"], 0, "stdout", "--thresholds"),
        ([sys.executable, "convert.py", "nonsense"], 2, "stderr", "unrecognized arguments: nonsense"),
    ],
    ids=["lite-whisper convert --help", "python convert.py nonsense"],
)
def test_commands(command: list[str], code: int, stream: str, message: str) -> None:
    process = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert process.returncode == code
    assert message in getattr(process, stream) and "Traceback" not in process.stderr
