"""The console script `lite-whisper`."""

import re
import subprocess
import sys

import pytest
from conversions import only_message

import lite_whisper_commands

HELP = """
import sys
import lite_whisper_commands
sys.argv = ["lite-whisper", "--help"]
assert lite_whisper_commands.main() == 0
print(*{"lite_whisper", "torch", "transformers", "numpy"} & sys.modules.keys(), file=sys.stderr)
"""


def test_help_does_not_wait_for_the_package() -> None:
    process = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert process.returncode == 0 and process.stderr.strip() == ""
    assert all(f"  {name} " in process.stdout for name in lite_whisper_commands.COMMANDS)


@pytest.mark.parametrize("name", lite_whisper_commands.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        lite_whisper_commands.load(name)(["--help"], f"lite-whisper {name}")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: lite-whisper {name} ")


@pytest.mark.parametrize("words", [[], ["nonsense"]], ids=str)
def test_usage_lists_the_commands(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lite-whisper", *words])
    assert lite_whisper_commands.main() == 2
    assert re.match("usage: lite-whisper .*convert", only_message(capsys.readouterr().err))
