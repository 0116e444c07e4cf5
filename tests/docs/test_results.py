"""The figures of the documents are those of `benchmarks/results/`, which say how they were measured."""

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

of_documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Lets the scripts of `benchmarks/` be imported."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def render(scripts: None) -> ModuleType:
    import render

    return render


def check_complete(results: dict[str, Any]) -> None:
    """Fails where results do not say how they were measured; what is not known has to have a reason."""
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
def test_results_say_how_they_were_measured(path: Path) -> None:
    check_complete(json.loads(path.read_text()))


def test_every_result_is_in_a_document(render: ModuleType) -> None:
    used = {name for document in DOCUMENTS for name in render.names(document.read_text())}
    assert used == {path.stem for path in RESULTS}
    assert set(render.DOCUMENTS) == set(DOCUMENTS)


def test_figures_of_cards_are_in_results() -> None:
    rows = [row for path in RESULTS if path.stem.startswith("cards-") for row in json.loads(path.read_text())["rows"]]
    for evaluation in (ROOT / "model_cards").glob("*/evaluation.json"):
        assert [each for each in json.loads(evaluation.read_text())["results"] if each not in rows] == []


@of_documents
def test_tables_are_as_their_results(render: ModuleType, document: Path) -> None:
    text = document.read_text()
    assert render.rendered(text) == text, "make results writes the tables anew"


@of_documents
def test_tables_with_decimals_come_from_results(render: ModuleType, document: Path) -> None:
    assert render.unmarked(document.read_text()) == []


@of_documents
def test_figures_of_the_text_are_in_its_results(render: ModuleType, document: Path) -> None:
    assert render.unbacked(document.read_text()) == []


def test_every_setting_is_written_somewhere(render: ModuleType) -> None:
    text = " ".join(" ".join(document.read_text().split()) for document in DOCUMENTS)
    assert [setting for setting in render.SETTINGS if setting not in text] == []


LONG = {
    "rows": [
        {"size": "acc", "contender": "stock", "seconds": 2.0, "note": "quick"},
        {"size": "acc", "contender": "ours", "seconds": 1.046},
        {"size": "fast", "contender": "ours", "seconds": None},
    ],
    "figures": {"times as fast": 1.94},
}


def test_a_table_of_results(render: ModuleType) -> None:
    how = "only contender: ours; stock\n| size | seconds | |\n| {size} | {seconds:.2f} s | {note:.1f} |"
    assert render.table(LONG, how).splitlines()[2:] == [
        "| acc | 1.05 s | |",
        "| fast | | |",
        "| acc | 2.00 s | quick |",
    ]
    how = "by size across contender\n| size | stock | ours |\n| {size} | {stock seconds:.0f} | {ours seconds:.1f} |"
    expected = "| size | stock | ours |\n|---|---|---|\n| acc | 2 | 1.0 |\n| fast | | |"
    assert render.table(LONG, how) == expected


@pytest.mark.parametrize(
    "how, message",
    [
        ("| s |\n| {second} |", "no column second; there are contender, note, seconds, size"),
        ("only size: plain\n| s |\n| {seconds} |", "no row has the size plain"),
        ("order by size\n| s |\n| {seconds} |", "'order by size' is neither"),
    ],
)
def test_a_table_that_cannot_be(render: ModuleType, how: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render.table(LONG, how)


def test_figures_of_a_text(render: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "load", lambda name: LONG)
    comment = "<!-- figures: long -->"
    backed = f"# A\n{comment}\n\nIt takes 1.05 s, or 1 to 2 seconds: 1.9 times as fast. See `--size 0.4`, in 95 %.\n"
    assert render.unbacked(backed) == []
    unbacked = [line.split(" in: ")[0] for line in render.unbacked(backed + "\n# B\n1.05 s, 3 and 2 %, 4 clips.\n")]
    assert unbacked == ["1.05", "3", "2"]  # a comment holds for its section
    assert render.unbacked(f"{comment}\n1.06 s") == ["1.06 in: 1.06 s"]
    assert render.unbacked(f"{comment}\n2.00 instead of 0.4 s") == ["0.4 in: 2.00 instead of 0.4 s"]


def test_a_benchmark_says_how_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
