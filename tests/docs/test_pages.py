"""Checks on the documents other than their commands: length, navigation, links, module docstrings."""

import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
from documents import ROOT, pages

MODULES = sorted((ROOT / "lite_whisper").rglob("*.py"))
DOCUMENTS = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings, including those of included files."""
    text = page.read_text()
    for name in re.findall(r'^--8<-- "([^:"]+)', text, flags=re.MULTILINE):
        text += (ROOT / name).read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_page_is_in_the_navigation() -> None:
    assert {page for page in pages() if page.name != "README.md"} == set((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_are_valid(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_begins_with_its_purpose(module: Path) -> None:
    """docs/architecture.md lists the modules by the lines that begin with three quotes and the summary."""
    lines = [line for line in module.read_text().splitlines() if line and not line.startswith("#")]
    assert not lines or re.match(r'"""\w|"""`', lines[0])


def test_the_changelog_begins_with_the_version() -> None:
    numbers = re.findall(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert numbers[0] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
