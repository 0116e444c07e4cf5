"""The contents of a release: the tracked package, with the Hub files as files, and nothing else."""

import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HUB_FILES = sorted(path.name for path in ROOT.glob("*_lite_whisper.py"))
DATA = {"lite_whisper/publishing/card_template.md", "lite_whisper/py.typed"}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).exists()]


def expected() -> set[str]:
    """The names in a wheel, besides its metadata."""
    modules = {name for name in tracked() if name.startswith("lite_whisper/") and name.endswith(".py")}
    return {"lite_whisper_commands.py", *modules, *DATA}


def copy_tree(folder: Path) -> Path:
    """Copies the tracked files, as they are now, with links as links."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build(source: Path, folder: Path) -> dict[str, bytes]:
    """The files in the wheel built from a tree or an archive, without its metadata."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, source], check=True)
    files = contents(next(folder.glob("*.whl")))
    return {name: data for name, data in files.items() if ".dist-info/" not in name}


def archive_repository(path: Path) -> None:
    """Writes a zip archive as code hosts offer it for download: one folder, links stored as links."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in tracked():
            entry = zipfile.ZipInfo(f"lite-whisper-main/{name}")
            file = ROOT / name
            entry.external_attr = (stat.S_IFLNK | 0o777 if file.is_symlink() else stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, str(file.readlink()) if file.is_symlink() else file.read_bytes())


def check_hub_files(files: dict[str, bytes]) -> None:
    assert len(HUB_FILES) >= 4
    for name in HUB_FILES:
        assert files[f"lite_whisper/{name}"] == (ROOT / name).read_bytes()


def test_the_package_links_to_every_hub_file() -> None:
    for name in HUB_FILES:
        link = ROOT / "lite_whisper" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_the_root_is_small() -> None:
    entries = {Path(name).parts[0] for name in tracked()}
    assert len(entries) <= 24
    assert len([name for name in entries if (ROOT / name).is_dir() and not name.startswith(".")]) <= 8


@pytest.mark.slow
def test_a_wheel_holds_the_tracked_package_without_leftovers(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "lite-whisper")
    leftovers = ("deleted.py", "common/deleted.py")
    for name in leftovers:
        (tree / "lite_whisper" / name).write_text("")
    first = build(tree, tmp_path / "first")
    assert {f"lite_whisper/{name}" for name in leftovers} <= first.keys()
    for name in leftovers:
        (tree / "lite_whisper" / name).unlink()
    second = build(tree, tmp_path / "second")
    assert second.keys() == expected()
    check_hub_files(second)


@pytest.mark.slow
def test_a_zip_archive_of_the_repository_can_be_installed(tmp_path: Path) -> None:
    archive_repository(tmp_path / "main.zip")
    files = build(tmp_path / "main.zip", tmp_path / "wheel")  # pip unpacks links in archives as text files
    assert files.keys() == expected()
    check_hub_files(files)


@pytest.mark.slow
def test_a_source_distribution_holds_files_and_gives_the_same_wheel(tmp_path: Path) -> None:
    tree, folder = copy_tree(tmp_path / "lite-whisper"), tmp_path / "dist"
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree], check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    files = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    assert files == build(tree, tmp_path / "wheel")
    check_hub_files(files)
    with tarfile.open(source) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= members.keys()
    assert not [name for name in members if name.startswith(("tests", "examples", "benchmarks", "docs"))]
    assert all(members[f"lite_whisper/{name}"].isreg() for name in HUB_FILES)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True)
