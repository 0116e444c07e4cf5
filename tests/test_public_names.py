"""The public names, in `public_names.txt`: none is removed or changed unnoticed."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lite_whisper_commands import COMMANDS, module_name

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_name("public_names.txt").read_text().splitlines()
PYTHON = [line for line in LISTED if line.startswith("lite_whisper")]
SHELL = [line for line in LISTED if line not in PYTHON]


def documented() -> Iterator[str]:
    """The names on the reference pages, as a program imports them: classes, functions and the methods listed."""
    for page in (ROOT / "docs/reference").glob("*.md"):
        for name, block in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", page.read_text(), flags=re.MULTILINE):
            options = (yaml.safe_load(block) or {"options": {}})["options"]
            yield options.get("heading", name)
            yield from (f"{name}.{method}" for method in options.get("members", ()))


def parameters(subject: object) -> str:
    """The parameters of a function, or of a class with its own constructor; optional ones end in `=...`."""
    if not callable(subject) or (inspect.isclass(subject) and "__init__" not in vars(subject)):
        return ""
    signature = inspect.signature(subject)
    plain = [
        each.replace(annotation=each.empty, default=each.empty if each.default is each.empty else ...)
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    shown = signature.replace(parameters=plain, return_annotation=signature.empty)
    return str(shown).replace("Ellipsis", "...")


@pytest.mark.parametrize("line", PYTHON)
def test_a_name_keeps_its_signature(line: str) -> None:
    name = line.partition("(")[0]
    assert name + parameters(pkgutil.resolve_name(name)) == line


def test_the_reference_documents_these_names() -> None:
    assert sorted(documented()) == sorted(line.partition("(")[0].replace(":", ".") for line in PYTHON)


def test_the_commands_have_these_options() -> None:
    found = []
    for command in COMMANDS:
        for action in importlib.import_module(module_name(command)).build_parser(command)._actions:
            found += [f"lite-whisper {command} {name}" for name in action.option_strings or [action.dest]]
    assert found == SHELL
