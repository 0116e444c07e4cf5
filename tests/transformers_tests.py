"""
Runs the common model tests of transformers on our model.

They are not in the installed package, but in the source distribution of the same version, which is downloaded once into
build/. Test classes missing from it (`generate` and exporters) are replaced by empty ones.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers
from filelock import FileLock

NAME = f"transformers-{transformers.__version__}"
FOLDER = Path(__file__).parents[1] / "build" / "transformers-tests" / NAME
PACKAGE = "tests_of_transformers"
MISSING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def fetch() -> Path:
    """Downloads the tests if needed; returns their folder."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
        if not FOLDER.exists():
            requirement = NAME.replace("-", "==")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", folder]
            subprocess.run([*pip, *source, requirement], check=True)
            with tarfile.open(*Path(folder).glob("*.tar.gz")) as archive:
                tests = [member for member in archive.getmembers() if member.name.startswith(f"{NAME}/tests/")]
                archive.extractall(folder, tests, filter="data")
            (Path(folder) / NAME / "tests").rename(FOLDER)
    return FOLDER


def load(name: str) -> ModuleType:
    """Imports a module of the tests, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = package = ModuleType(PACKAGE)
        package.__path__ = [str(fetch())]
        for module, class_name in MISSING.items():
            for path in (module.partition(".")[0], module):
                sys.modules[f"{PACKAGE}.{path}"] = ModuleType(f"{PACKAGE}.{path}")
            setattr(sys.modules[f"{PACKAGE}.{module}"], class_name, type(class_name, (), {}))
    return importlib.import_module(f"{PACKAGE}.{name}")


if __name__ == "__main__":
    fetch()
