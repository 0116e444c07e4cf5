"""
Renders the tables of the documents from the results in benchmarks/results/.

    python benchmarks/render.py [--check]

With --check it changes nothing, prints what is out of date, and exits with 1. A table in a document looks like this:

    <!-- results: NAME
    only size: fast; acc
    by size across contender
    | size   | seconds             |
    | {size} | {stock seconds:.2f} |
    -->

    | ... |

    <!-- end -->

NAME is a file of results without its suffix. The last two lines of the comment are the header of the table and a row
template: column names of the results in braces, with an optional Python format. A value that is text is inserted as it
is, and a cell stays blank if one of its values is missing. Two kinds of lines can precede the header:

- `only COLUMN: VALUE; ...` selects rows, in this order.
- `by COLUMN across COLUMN` merges the rows with the same value in the first column into one. Its other columns are
  named after the value of the second column and their own name ("stock seconds").
"""

import argparse
import json
import re
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/README.md"]

MARKED = re.compile(r"^<!-- results: (?P<name>[\w-]+)\n(?P<how>.*?)-->\n(?P<table>.*?)^<!-- end -->$", re.M | re.S)
NOT_FIGURES = re.compile(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)", re.M | re.S)  # code and link targets

Row = Mapping[str, Any]


class Cells(string.Formatter):
    """Fills row templates: a name in braces is a column, and values that are text ignore the format."""

    def get_field(self, name: str, positional: Sequence[Any], row: Row) -> Any:
        """Returns the value of a column."""
        return row[name], name

    def format_field(self, value: Any, form: str) -> str:
        """Formats a number; text is returned as it is."""
        return value if isinstance(value, str) else format(value, form)

    def columns(self, template: str) -> set[str]:
        """Returns the columns that a template names."""
        return {name for _, name, _, _ in self.parse(template) if name is not None}


CELLS = Cells()


def load(name: str) -> dict[str, Any]:
    """Loads a file of results by name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(results: dict[str, Any], how: str) -> str:
    """
    Renders a table of results as Markdown.

    Args:
        results (`dict`): the contents of a file of results.
        how (`str`): the lines of the comment: choices of rows, header, row template.

    Raises:
        ValueError: if a column or a value is not in the results.
    """
    *choices, header, template = how.strip().splitlines()
    rows: list[Row] = [{name: value for name, value in row.items() if value is not None} for row in results["rows"]]
    for choice in choices:
        if only := re.fullmatch(r"only (.+?): (.+)", choice):
            column, values = only[1], only[2].split("; ")
            rows = [row for value in values for row in select_rows(rows, column, value)]
        elif joint := re.fullmatch(r"by (.+) across (.+)", choice):
            rows = merge_rows(rows, *joint.groups())
        else:
            raise ValueError(f"{choice!r} must be 'only COLUMN: VALUE; ...' or 'by COLUMN across COLUMN'")
    known = {name for row in rows for name in row}
    if unknown := CELLS.columns(template) - known:
        raise ValueError(f"unknown column {', '.join(sorted(unknown))}; the columns are {', '.join(sorted(known))}")
    titles, cells = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in (header, template))
    lines = [titles, *([fill_cell(cell, row) for cell in cells] for row in rows)]
    written = ["| " + " | ".join(line) + " |" for line in lines]
    written.insert(1, "|" + "---|" * len(titles))
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in written)


def select_rows(rows: Sequence[Row], column: str, value: str) -> list[Row]:
    """Returns the rows with a value in a column; raises ValueError if there are none."""
    found = [row for row in rows if str(row.get(column)) == value]
    if not found:
        raise ValueError(f"no row has {column} {value}")
    return found


def merge_rows(rows: Sequence[Row], by: str, across: str) -> list[Row]:
    """Merges the rows with the same value in the column `by` into one."""
    wide: dict[Any, dict[str, Any]] = {}
    for row in rows:
        others = {f"{row[across]} {name}": value for name, value in row.items() if name not in (by, across)}
        wide.setdefault(row[by], {by: row[by]}).update(others)
    return list(wide.values())


def fill_cell(template: str, row: Row) -> str:
    """Renders a cell, blank if a value is missing."""
    return CELLS.vformat(template, (), row) if CELLS.columns(template) <= row.keys() else ""


def rendered(document: str) -> str:
    """Returns a document with its tables rendered."""

    def replacement(marked: re.Match[str]) -> str:
        try:
            text = table(load(marked["name"]), marked["how"])
        except (OSError, ValueError) as error:
            raise ValueError(f"results {marked['name']}: {error}") from error
        return f"<!-- results: {marked['name']}\n{marked['how']}-->\n\n{text}\n\n<!-- end -->"

    return MARKED.sub(replacement, document)


def unmarked(document: str) -> list[str]:
    """Returns the table rows that contain a decimal number but are not rendered from results."""
    rest = NOT_FIGURES.sub("", MARKED.sub("", document))
    return [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]


def main() -> None:
    """Renders the documents, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check only, change nothing")
    arguments = parser.parse_args()
    failed = False
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        complaints = [f"not rendered from results: {row}" for row in unmarked(before)]
        if not arguments.check and after != before:
            path.write_text(after, encoding="utf-8")
        elif after != before:
            complaints.append("tables differ from their results; run make results")
        for complaint in complaints:
            print(f"{path.relative_to(ROOT)}: {complaint}", file=sys.stderr)
        failed = failed or bool(complaints)
    sys.exit(failed)


if __name__ == "__main__":
    main()
