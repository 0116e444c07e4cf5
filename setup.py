"""The part of the build that pyproject.toml cannot declare; everything else is declared there."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# They lie at the root, where readers and the Hub look for them; lite_whisper/ has links to them. An archive of the
# repository may hold these links as text files, so the build always copies the files themselves.
HUB_FILES = sorted(Path().glob("*_lite_whisper.py"))


def copy_hub_files(package: Path) -> None:
    """Replaces the links to the Hub files in a copy of the package by the files."""
    for file in HUB_FILES:
        (package / file).unlink(missing_ok=True)
        shutil.copy(file, package / file)


class CleanBuild(build_py):
    """Builds into an empty folder; setuptools would also pack modules left over from an earlier build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            copy_hub_files(Path(self.build_lib) / "lite_whisper")


class SourceDistribution(sdist):
    """A source distribution with the Hub files in place of links, and without the tests, which need examples/."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [file for file in files if Path(file).parts[0] != "tests"])
        copy_hub_files(Path(base_dir) / "lite_whisper")


setup(cmdclass={"build_py": CleanBuild, "sdist": SourceDistribution})
