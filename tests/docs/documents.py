"""The documentation pages in reading order, and the commands and programs in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which paths may be tagged `!relative`."""


_Loader.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))


def _files(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [file for each in (nav.values() if isinstance(nav, dict) else nav) for file in _files(each)]


def pages() -> list[Path]:
    """The README, then the pages of the site in navigation order."""
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    return [ROOT / "README.md", *(ROOT / "docs" / file for file in _files(site["nav"]))]


@dataclass(frozen=True)
class Step:
    """One line of a `bash` block, or a whole `python` block."""

    page: str
    language: str
    text: str


def steps() -> list[Step]:
    """All steps in reading order, without `make` commands and exact repetitions."""
    found: dict[str, Step] = {}
    for page in pages():
        for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines() if language == "bash" else [block]
            for text in lines:
                if not text.startswith("make "):
                    found.setdefault(text, Step(str(page.relative_to(ROOT)), language, text))
    return list(found.values())
