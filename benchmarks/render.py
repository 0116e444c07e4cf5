"""
Writes the tables of the documents from the results in benchmarks/results/, and finds figures that nothing backs.

    python benchmarks/render.py [--check]

With --check it changes nothing, names what is not as it should be, and exits with 1. A table stands like this:

    <!-- results: NAME
    only size: fast; acc
    by size across contender
    | size   | seconds             |
    | {size} | {stock seconds:.2f} |
    -->

    | ... |

    <!-- end -->

NAME is that of a file of results without its end. Two lines of a table follow: its head, and a row with the columns of
the results in braces, each with a format of Python where that matters. Text in the place of a number is written as it
is, and a cell of which a number is missing stays empty. Two lines may come before these: `only COLUMN: VALUE; ...`
takes some rows, in this order. `by COLUMN across COLUMN` joins the rows that agree in the first one into one, whose
other columns are called by the value of the second and their own name ("stock seconds").

In the text every number with a decimal or with a unit of measurement has to be one of the results that the section
names, in a table or in a comment `<!-- figures: NAME, NAME -->`, rounded as the text writes it. `SETTINGS` lists what
is chosen and not measured.
"""

import argparse
import json
import re
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/README.md"]

MARKED = re.compile(r"^<!-- results: (?P<name>[\w-]+)\n(?P<how>.*?)-->\n(?P<table>.*?)^<!-- end -->$", re.M | re.S)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)
UNIT = r"%|times\b|s\b|seconds?\b|ms\b|milliseconds\b|MB\b|GB\b|points?\b|nats\b|M parameters"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
LIST = rf"(?:,? (?:and|or|to|instead of) {NUMBER}| \({NUMBER}\))*"  # 3, 4 and 5 %
FIGURE = re.compile(rf"(?<![\w.,:/+-])(?:(?P<one>{NUMBER})(?={LIST}\s(?:{UNIT}))|(?P<other>-?\d+\.\d+)(?![\w.]))")

# What is chosen, or follows from sizes without being measured.
SETTINGS = (
    *("95 %", "50 %", "65 %", "81 %", "49 %", "0.99", "0.999", "0.97:0.99", "0.9:0.95", "2.4", "0.0009"),
    *("30 s", "30 seconds", "15 seconds", "10 seconds", "150 s", "200 s", "8 and 12 times"),
    *("8 to 28 s", "8 to 28 seconds", "11 to 18 seconds", "1.2 to 5 s", "3.2 s"),
    *("24 MB", "2 GB", "0.92 GB", "0.12 GB", "23 GB", "7.7 M parameters", "1.9 M"),
    *("Python 3.11", "4.57", "5.24", "release 2.2", "CC BY-SA 4.0"),
)
CHOSEN = re.compile("|".join(rf"(?<![\w.-]){re.escape(setting)}(?!\w)" for setting in SETTINGS).replace(r"\ ", r"\s"))

Row = Mapping[str, Any]


class Cells(string.Formatter):
    """Fills templates: names in braces are columns as a whole, and text in the place of a number has no format."""

    def get_field(self, name: str, positional: Sequence[Any], row: Row) -> Any:
        """The value of a column."""
        return row[name], name

    def format_field(self, value: Any, form: str) -> str:
        """A number in its format."""
        return value if isinstance(value, str) else format(value, form)

    def columns(self, template: str) -> set[str]:
        """The columns that a template names."""
        return {name for _, name, _, _ in self.parse(template) if name is not None}


CELLS = Cells()


def load(name: str) -> dict[str, Any]:
    """The results of this name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(results: dict[str, Any], how: str) -> str:
    """
    A table of results, as Markdown.

    Args:
        results (`dict`): what a file of results holds.
        how (`str`): the lines that say which rows and which columns.

    Raises:
        ValueError: a column or a value is not in the results.
    """
    *choices, head, template = how.strip().splitlines()
    rows: list[Row] = [{name: value for name, value in row.items() if value is not None} for row in results["rows"]]
    for choice in choices:
        if only := re.fullmatch(r"only (.+?): (.+)", choice):
            column, values = only[1], only[2].split("; ")
            rows = [row for value in values for row in chosen(rows, column, value)]
        elif joint := re.fullmatch(r"by (.+) across (.+)", choice):
            rows = joined(rows, *joint.groups())
        else:
            raise ValueError(f"{choice!r} is neither 'only COLUMN: VALUE; ...' nor 'by COLUMN across COLUMN'")
    known = {name for row in rows for name in row}
    if unknown := CELLS.columns(template) - known:
        raise ValueError(f"there is no column {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    titles, cells = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in (head, template))
    lines = [titles, *([filled(cell, row) for cell in cells] for row in rows)]
    written = ["| " + " | ".join(line) + " |" for line in lines]
    written.insert(1, "|" + "---|" * len(titles))
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in written)


def chosen(rows: Sequence[Row], column: str, value: str) -> list[Row]:
    """The rows with this value, of which there has to be one."""
    found = [row for row in rows if str(row.get(column)) == value]
    if not found:
        raise ValueError(f"no row has the {column} {value}")
    return found


def joined(rows: Sequence[Row], by: str, across: str) -> list[Row]:
    """One row for all that agree in the column `by`."""
    wide: dict[Any, dict[str, Any]] = {}
    for row in rows:
        others = {f"{row[across]} {name}": value for name, value in row.items() if name not in (by, across)}
        wide.setdefault(row[by], {by: row[by]}).update(others)
    return list(wide.values())


def filled(template: str, row: Row) -> str:
    """A cell, empty where something is missing."""
    return CELLS.vformat(template, (), row) if CELLS.columns(template) <= row.keys() else ""


def rendered(document: str) -> str:
    """A document with its tables as the results have them."""

    def replacement(marked: re.Match[str]) -> str:
        try:
            text = table(load(marked["name"]), marked["how"])
        except (OSError, ValueError) as error:
            raise ValueError(f"results {marked['name']}: {error}") from error
        return f"<!-- results: {marked['name']}\n{marked['how']}-->\n\n{text}\n\n<!-- end -->"

    return MARKED.sub(replacement, document)


def unmarked(document: str) -> list[str]:
    """The rows of tables that hold a decimal and are not rendered from results."""
    rest = CODE.sub("", MARKED.sub("", document))
    return [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]


def unbacked(document: str) -> list[str]:
    """The figures of the text that no results of their section hold, with the line in which each stands."""
    return [found for section in sections(CODE.sub("", document)) for found in _unbacked_in(section)]


def sections(document: str) -> list[str]:
    """A document, cut at its headings."""
    return re.split(r"^(?=#)", document, flags=re.M)


def _unbacked_in(section: str) -> Iterator[str]:
    numbers = [number for name in names(section) for number in all_numbers(load(name))]
    text = CHOSEN.sub("", re.sub(r"<!--.*?-->|^\|[^\n]*$|\]\([^)]*\)", "", section, flags=re.M | re.S))
    for figure in FIGURE.finditer(text):
        written = (figure["one"] or figure["other"]).replace(",", "")
        decimals = len(written.partition(".")[2])
        if not any(f"{number:.{decimals}f}" == written for number in numbers):
            line = text[: figure.start()].count("\n")
            yield f"{written} in: {text.splitlines()[line].strip()}"


def names(document: str) -> list[str]:
    """The results that a document, or a section of it, names."""
    listed = re.findall(r"^<!-- (?:results: ([\w-]+)|figures: (.+) -->)$", document, flags=re.M)
    return [name for of_table, of_text in listed for name in ([of_table] if of_table else of_text.split(", "))]


def all_numbers(results: dict[str, Any]) -> list[float]:
    """Every number of rows and figures."""
    values = [value for row in results["rows"] for value in row.values()] + list(results["figures"].values())
    return [value for value in values if isinstance(value, int | float)]


def main() -> None:
    """Renders, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    failed = False
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        complaints = [f"has no results: {row}" for row in unmarked(before)]
        complaints += [f"is in no results: {figure}" for figure in unbacked(before)]
        if not arguments.check and after != before:
            path.write_text(after, encoding="utf-8")
        elif after != before:
            complaints.append("tables differ from their results; make results writes them anew")
        for complaint in complaints:
            print(f"{path.relative_to(ROOT)}: {complaint}", file=sys.stderr)
        failed = failed or bool(complaints)
    sys.exit(failed)


if __name__ == "__main__":
    main()
