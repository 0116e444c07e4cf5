"""What the wheel holds: the package as it is tracked, nothing that was deleted, nothing that builds it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = "lite_whisper_commands.py"  # the console script, which lies beside the package too


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).exists()]


def package_files(names: list[str]) -> set[str]:
    """The names in a wheel of those that are the package's: at the root, and in folders that are packages."""
    folders = {name.partition("/")[0] for name in names if name.endswith("/__init__.py")}
    modules = (name for name in names if name.endswith(".py") and name != "setup.py")
    return {COMMANDS, *(f"lite_whisper/{name}" for name in modules if "/" not in name or name.split("/")[0] in folders)}


def built(tree: Path, folder: Path) -> set[str]:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, tree], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_holds_what_is_tracked_now(tmp_path: Path) -> None:
    tree, names = tmp_path / "lite-whisper", tracked()
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in ("deleted.py", "common/deleted.py"):
        (tree / name).write_text("")
    first = built(tree, tmp_path / "first")
    assert {"lite_whisper/deleted.py", "lite_whisper/common/deleted.py"} <= first
    for name in ("deleted.py", "common/deleted.py"):
        (tree / name).unlink()
    second = built(tree, tmp_path / "second")
    assert {name for name in second if name.endswith(".py")} == package_files(names)
    assert "lite_whisper/publishing/card_template.md" in second
