"""Before mkdocs reads the docstrings: the package as it is installed, since at the root it lies among all the rest."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_startup(**_: object) -> None:
    """Writes it to where mkdocs.yml lets the reference look for it."""
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "build/package"]
    subprocess.run(command, cwd=ROOT, check=True)
