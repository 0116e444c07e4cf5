"""A rerun of a command that was killed gives what an undisturbed run gives; many kills: `kills.py --kills 200`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_killed_runs_are_finished_by_a_rerun() -> None:
    # In a process of its own: one that has computed something cannot be forked safely.
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), "--kills", "6", "--jobs", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    total = re.search(r"^all +(.*)$", process.stdout, re.MULTILINE)
    assert total
    _, kills, _, failed, differs = map(int, total[1].split())
    assert kills >= 6 and failed == differs == 0
