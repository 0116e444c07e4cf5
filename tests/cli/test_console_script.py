"""Version, help and shell completion of the console script."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import lite_whisper
from lite_whisper.cli import completion
from lite_whisper_commands import COMMANDS, main

VERSION = importlib.metadata.version("lite-whisper")


def output(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["lite-whisper", *words])
    code = main()
    return code, capsys.readouterr().out


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert lite_whisper.__version__ == VERSION
    assert output(["--version"], monkeypatch, capsys) == (0, f"lite-whisper {VERSION}\n")


@pytest.mark.slow
def test_the_package_as_a_program() -> None:
    process = subprocess.run([sys.executable, "-m", "lite_whisper", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, f"lite-whisper {VERSION}\n")


def test_help_describes_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = output(["--help"], monkeypatch, capsys)
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert code == 0 and all(len(lines[command]) > 2 for command in COMMANDS)


def test_help_does_not_wait_for_the_package() -> None:
    program = "import sys; sys.argv = ['lite-whisper', '--help']; import lite_whisper_commands as c; c.main(); "
    program += "assert not {'torch', 'transformers', 'lite_whisper'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["lite-whisper", "tran"], ["transcribe"]), (["lite-whisper", "report", "--js"], ["--json"])],
)
def test_completion_in_bash(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"))
    typed = " ".join(words)
    program = f"source {tmp_path}/script; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{typed}'; "
    program += '$(complete -p lite-whisper | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); echo "${COMPREPLY[@]}"'
    process = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert process.stdout.split() == expected, process.stderr


def test_completion_of_an_unknown_shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lite-whisper", "--completion", "cmd"])
    assert main() == 2
    assert "{bash,zsh," in capsys.readouterr().err
