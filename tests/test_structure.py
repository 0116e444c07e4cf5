"""The shape of the package: modules and functions that fit into a head, and Hub files that need nothing of it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HUB_FILES = tuple(f"{part}_lite_whisper" for part in ("configuration", "inference", "kernels", "modeling"))
FLOORS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
MODULES = [*sorted(ROOT.glob("*.py")), *(path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")))]
LONGEST_MODULE, LONGEST_FUNCTION = 400, 80  # lines
MODEL_FILES_TOGETHER, HUB_FILES_TOGETHER = 800, 950  # without and with the kernels of 8 bits


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a module imports, and `.name` for its neighbours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").partition(".")[0]


def test_the_floors_are_there() -> None:
    assert "common" in FLOORS and "cli" in FLOORS and len(MODULES) > 60
    assert not {"tests", "benchmarks", "examples", "docs"} & set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path) if node.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


def test_the_files_that_travel_are_short_and_stand_alone() -> None:
    paths = [ROOT / f"{name}.py" for name in HUB_FILES]
    lines = {path.stem: len(path.read_text().splitlines()) for path in paths}
    assert sum(lines.values()) <= HUB_FILES_TOGETHER
    assert sum(lines.values()) - lines["kernels_lite_whisper"] <= MODEL_FILES_TOGETHER
    known = {"torch", "transformers", *(f".{name}" for name in HUB_FILES), *sys.stdlib_module_names}
    assert {name for path in paths for name in imported(path)} <= known
