"""What the pages promise that is not a command: their length, their links, a line for every file."""

import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
from documents import ROOT, pages

FLOORS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
HUB_FILES = tuple(f"{part}_lite_whisper.py" for part in ("configuration", "modeling", "inference", "kernels"))
DOCUMENTS = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page: its headings, with those that it includes."""
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
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_file_of_the_package_has_a_line() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    listed = re.findall(r"^\| `([\w/]+\.py)` \| \S.* \|$", page, flags=re.MULTILINE)
    files = [path for floor in FLOORS for path in (ROOT / floor).glob("*.py") if path.name != "__init__.py"]
    names = {str(path.relative_to(ROOT)) for path in files} | {"convert.py", "__main__.py", *HUB_FILES}
    assert len(listed) == len(set(listed))
    assert set(listed) == names


def test_the_changelog_begins_with_the_version() -> None:
    numbers = re.findall(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert numbers[0] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_hub_files_are_as_short_as_the_pages_say() -> None:
    lines = sum(len((ROOT / name).read_text().splitlines()) for name in HUB_FILES)
    for page in ("README.md", "docs/guide/use.md", "docs/architecture.md"):
        (most,) = re.findall(r"\bunder (\d+) lines\b", (ROOT / page).read_text())
        assert lines < int(most)
