"""What a release holds: the package as it is tracked, nothing that was deleted, nothing that builds it."""

import shutil
import subprocess
import sys
import tarfile
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
    folders = {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith("/__init__.py")}
    modules = (name for name in names if name.endswith(".py") and name != "setup.py")
    return {COMMANDS, *(f"lite_whisper/{name}" for name in modules if "/" not in name or name.split("/")[0] in folders)}


def copied(folder: Path) -> Path:
    """What is tracked, as it is now, in a folder of its own."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def built(tree: Path, folder: Path) -> dict[str, bytes]:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, tree], check=True)
    return contents(next(folder.glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_holds_what_is_tracked_now(tmp_path: Path) -> None:
    tree = copied(tmp_path / "lite-whisper")
    for name in ("deleted.py", "common/deleted.py"):
        (tree / name).write_text("")
    first = built(tree, tmp_path / "first")
    assert {"lite_whisper/deleted.py", "lite_whisper/common/deleted.py"} <= first.keys()
    for name in ("deleted.py", "common/deleted.py"):
        (tree / name).unlink()
    second = built(tree, tmp_path / "second")
    data = {"lite_whisper/publishing/card_template.md", "lite_whisper/py.typed"}
    assert {name for name in second if ".dist-info/" not in name} == package_files(tracked()) | data


@pytest.mark.long
def test_the_source_distribution_gives_the_same_wheel_and_the_registry_takes_both(tmp_path: Path) -> None:
    tree, folder = copied(tmp_path / "lite-whisper"), tmp_path / "dist"
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree], check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    assert contents(wheel) == built(tree, tmp_path / "wheel")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks", "docs"))]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True)
