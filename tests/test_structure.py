"""Hub files depend on torch, transformers and one another only, without cycles; ruff limits the complexity of code."""

import ast
import graphlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HUB_FILES = sorted(path.stem for path in ROOT.glob("*_lite_whisper.py"))
COMPLEXITY_RULES = {"C901", "PLR"}


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a module imports, and `.name` for its neighbours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").partition(".")[0]


def test_there_is_one_hub_file_per_concern() -> None:
    concerns = ("configuration", "inference", "kernels", "modeling", "padding")
    assert [f"{concern}_lite_whisper" for concern in concerns] == HUB_FILES


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_stand_alone(name: str) -> None:
    known = {"torch", "transformers", *(f".{other}" for other in HUB_FILES), *sys.stdlib_module_names}
    assert set(imported(ROOT / f"{name}.py")) <= known


def test_hub_files_have_no_import_cycle() -> None:
    graph = {f".{name}": [other for other in imported(ROOT / f"{name}.py") if other[0] == "."] for name in HUB_FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_package_links_to_the_hub_files() -> None:
    links = {path.stem: path for path in (ROOT / "lite_whisper").glob("*_lite_whisper.py")}
    assert sorted(links) == HUB_FILES
    for name, link in links.items():
        assert link.is_symlink() and link.resolve() == ROOT / f"{name}.py"


def test_complexity_is_limited_in_the_package_and_the_hub_files() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert set(lint["select"]) >= COMPLEXITY_RULES
    for pattern, ignored in lint["per-file-ignores"].items():
        assert pattern.startswith(("tests/", "benchmarks/")), f"{pattern} ignores {ignored}"
