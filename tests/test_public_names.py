"""The names that programs and scripts rely on, in `public_names.txt`: none goes, and none changes, unnoticed."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lite_whisper.cli.lite_whisper_commands import COMMANDS

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_name("public_names.txt").read_text().splitlines()
PYTHON = [line for line in LISTED if line.startswith("lite_whisper")]
SHELL = [line for line in LISTED if line not in PYTHON]


def documented() -> Iterator[str]:
    """What the pages of the reference show, as a program imports it: classes, functions, and the methods they name."""
    for page in (ROOT / "docs/reference").glob("*.md"):
        for name, block in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", page.read_text(), flags=re.MULTILINE):
            options = (yaml.safe_load(block) or {"options": {}})["options"]
            yield options.get("heading", name)
            yield from (f"{name}.{method}" for method in options.get("members", ()))


def parameters(of: object) -> str:
    """Those of a function, or of a class of which the package says how it is made; optional ones end in `=...`."""
    if not callable(of) or (inspect.isclass(of) and "__init__" not in vars(of)):
        return ""
    signature = inspect.signature(of)
    plain = [
        each.replace(annotation=each.empty, default=each.empty if each.default is each.empty else ...)
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    shown = signature.replace(parameters=plain, return_annotation=signature.empty)
    return str(shown).replace("Ellipsis", "...")


@pytest.mark.parametrize("line", PYTHON)
def test_a_name_can_be_called_as_before(line: str) -> None:
    name = line.partition("(")[0]
    assert name + parameters(pkgutil.resolve_name(name)) == line


def test_the_reference_shows_these_names() -> None:
    assert sorted(documented()) == sorted(line.partition("(")[0].replace(":", ".") for line in PYTHON)


def test_the_commands_have_these_options() -> None:
    found = []
    for command, (module, _) in COMMANDS.items():
        for action in importlib.import_module(module).build_parser(command)._actions:
            found += [f"lite-whisper {command} {name}" for name in action.option_strings or [action.dest]]
    assert found == SHELL
