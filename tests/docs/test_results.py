"""The tables of the documents match `benchmarks/results/`, whose files record how they were measured."""

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import ROOT, pages

BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
DOCUMENTS = [*pages(), BENCHMARKS / "README.md"]
FIELDS = {"command", "commit", "date", "machine", "versions", "recorded", "units", "rows", "figures"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Makes the scripts of `benchmarks/` importable."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def render(scripts: None) -> ModuleType:
    import render

    return render


def check_complete(results: dict[str, Any]) -> None:
    """Fails if results do not record how they were measured; unknown fields require a reason."""
    assert results.keys() - {"unknown"} == FIELDS
    unknown = {name for name in FIELDS if results[name] is None}
    unknown |= {"versions"} if None in (results["versions"] or {}).values() else set()
    assert results.get("unknown", {}).keys() == unknown
    assert all(results.get("unknown", {}).values())
    assert re.fullmatch(r"[0-9a-f]{40}", results["commit"]), "measure on a commit"
    datetime.date.fromisoformat(results["date"])
    assert results["recorded"] and results["versions"]
    values = [*results["figures"].items(), *(item for row in results["rows"] for item in row.items())]
    numbers = {name for name, value in values if isinstance(value, int | float)}
    assert numbers and numbers <= results["units"].keys()
    assert all(isinstance(unit, str) and unit for unit in results["units"].values())


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_record_how_they_were_measured(path: Path) -> None:
    check_complete(json.loads(path.read_text()))


def test_every_document_is_rendered(render: ModuleType) -> None:
    assert set(render.DOCUMENTS) == set(DOCUMENTS)


def test_figures_of_cards_are_in_results() -> None:
    rows = [row for path in RESULTS if path.stem.startswith("cards-") for row in json.loads(path.read_text())["rows"]]
    for evaluation in (ROOT / "model_cards").glob("*/evaluation.json"):
        assert [each for each in json.loads(evaluation.read_text())["results"] if each not in rows] == []


@each_document
def test_tables_match_their_results(render: ModuleType, document: Path) -> None:
    text = document.read_text()
    assert render.rendered(text) == text, "run make results"


@each_document
def test_tables_with_decimals_come_from_results(render: ModuleType, document: Path) -> None:
    assert render.unmarked(document.read_text()) == []


EXAMPLE = {
    "rows": [
        {"size": "acc", "contender": "stock", "seconds": 2.0, "note": "quick"},
        {"size": "acc", "contender": "ours", "seconds": 1.046},
        {"size": "fast", "contender": "ours", "seconds": None},
    ],
    "figures": {"times as fast": 1.94},
}


def test_rendered_table(render: ModuleType) -> None:
    how = "only contender: ours; stock\n| size | seconds | |\n| {size} | {seconds:.2f} s | {note:.1f} |"
    assert render.table(EXAMPLE, how).splitlines()[2:] == [
        "| acc | 1.05 s | |",
        "| fast | | |",
        "| acc | 2.00 s | quick |",
    ]
    how = "by size across contender\n| size | stock | ours |\n| {size} | {stock seconds:.0f} | {ours seconds:.1f} |"
    expected = "| size | stock | ours |\n|---|---|---|\n| acc | 2 | 1.0 |\n| fast | | |"
    assert render.table(EXAMPLE, how) == expected


@pytest.mark.parametrize(
    "how, message",
    [
        ("| s |\n| {second} |", "unknown column second; the columns are contender, note, seconds, size"),
        ("only size: plain\n| s |\n| {seconds} |", "no row has size plain"),
        ("order by size\n| s |\n| {seconds} |", "'order by size' must be"),
    ],
)
def test_invalid_tables_are_rejected(render: ModuleType, how: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render.table(EXAMPLE, how)


def test_benchmarks_record_how_they_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import record

    monkeypatch.setattr(
        sys, "argv", [str(BENCHMARKS / "serving.py"), "--model", str(tmp_path), f"half={tmp_path}", "-n", "2"]
    )
    record.write_results([{"name": "a", "s": 1.5}], tmp_path / "made/x.json", {"s": "s", "peak": "GB"}, {"peak": 3})
    results = json.loads((tmp_path / "made/x.json").read_text())
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert results["commit"].removesuffix("-dirty") == head.stdout.strip()
    check_complete(results | {"commit": head.stdout.strip()})
    name = tmp_path.name
    assert results["command"] == f"python benchmarks/serving.py --model {name} half={name} -n 2"
    assert results["versions"]["torch"] and re.match(r"\d+ cores", results["machine"])
    assert results["rows"] == [{"name": "a", "s": 1.5}] and results["figures"] == {"peak": 3}
