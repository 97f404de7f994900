"""Every number of README and docs is in a table under results/, which says where it is from."""

import collections
import csv
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import stated_numbers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
STATED = RESULTS / "stated.csv"

#: Of more rows a table holds nearly any number, so that only its rendered rows count.
_FEW = 500

#: Written by docs/generate.py from code, README and the notebook.
_GENERATED = {"index.md", "flags.md", "tutorial.md"}

PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.name not in _GENERATED
]


@functools.cache
def rows(table: str) -> list[dict[str, str]]:
    with (RESULTS / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def unheld(page: str, text: str) -> list[str]:
    """What a page states that neither its rows of stated.csv nor a table named beside it holds."""
    known = collections.Counter(row[1:] for row in stated_rows() if row[0] == page)
    missing = []
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        for each in stated_numbers.stated(section):
            if known[each.key]:
                known[each.key] -= 1
            elif not any(holds(table, each) for table in named(each, section)):
                shown = f"{each.number} {each.unit} [{each.low}, {each.high}]"
                missing.append(f"{shown} after '{each.before}'")
    return missing


def stated_rows() -> list[tuple[str, ...]]:
    """Of stated.csv, which has a row for each time that a page states a number."""
    columns = ("page", "number", "unit", "low", "high")
    return [tuple(row[column] for column in columns) for row in rows("stated")]


def named(each: stated_numbers.Stated, section: str) -> set[str]:
    """The tables that a number may be from: those that its row, list item or section names."""
    alone = each.line.startswith(("|", "- "))
    return {
        table
        for table in re.findall(r"results/(\w+)\.csv", each.line if alone else section)
        if table != "stated" and len(rows(table)) <= _FEW
    }


#: Columns, or words in a row, that hold a number with a unit. Shares are written as percentages.
_COLUMNS = {
    "s": "seconds",
    "ms": r"\bms\b|milliseconds",
    "MiB": "mib|mebibytes",
    "times": "^x |/",
    "images/s": "images_per_second",
}


def holds(table: str, each: stated_numbers.Stated) -> bool:
    """Whether a row of a table, rounded as stated, holds a number, and beside it its interval."""
    wanted = [text for text in (each.number, each.low, each.high) if text]
    share = each.unit in {"%", "points"} or (each.unit == "" and each.low != "")
    if not share and each.unit not in _COLUMNS:
        return False
    for row in rows(table):
        if share:
            cells = [decimal(cell) for cell in row.values()]
        else:
            fits = re.compile(_COLUMNS[each.unit], re.IGNORECASE)
            of_row = fits.search(row.get("what", ""))
            cells = [
                float(cell)
                for column, cell in row.items()
                if (fits.search(column) or (column == "value" and of_row)) and cell
            ]
        beside = zip(*(cells[place:] for place in range(len(wanted))), strict=False)
        if any(all(map(rounds, group, wanted)) for group in beside):
            return True
    return False


def decimal(cell: str) -> float | None:
    """A share or difference of shares, in percent; counts are none."""
    return 100 * float(cell) if re.fullmatch(r"-?[01]\.\d+", cell) else None


def rounds(cell: float | None, text: str) -> bool:
    half = 0.5 * 10.0 ** -len(text.partition(".")[2]) + 1e-9
    return cell is not None and abs(cell - float(text)) <= half


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_is_in_a_table(page):
    assert unheld(str(page.relative_to(ROOT)), page.read_text()) == []


@pytest.mark.parametrize(
    ("stands", "instead"),
    [
        ("98.7 % [96.9, 99.5]", "98.9 % [96.9, 99.5]"),
        ("[64.3, 91.8]", "[64.4, 91.8]"),
        ("16.0 points", "15.0 points"),
        ("97.25 %", "97.52 %"),
        ("paper 51.0 %", "paper 51.9 %"),
        ("clean 74.0 % (72.7 to 76.4)", "clean 74.0 % (72.7 to 76.5)"),
        ("took 215 s", "took 214 s"),
    ],
)
def test_a_changed_number_is_found(stands, instead):
    readme = (ROOT / "README.md").read_text()
    assert stands in readme
    assert len(unheld("README.md", readme.replace(stands, instead))) == 1


def test_no_row_is_stated_nowhere():
    """What is no longer said, or was said otherwise, leaves the table."""
    said = collections.Counter(
        (str(page.relative_to(ROOT)), *each.key)
        for page in PAGES
        for each in stated_numbers.stated(page.read_text())
    )
    assert collections.Counter(stated_rows()) - said == collections.Counter()


@pytest.mark.parametrize("table", sorted(path.stem for path in RESULTS.glob("*.csv")))
def test_every_row_says_where_it_is_from(table):
    for place, row in enumerate(rows(table), 2):
        for column in ("command", "machine", "commit", "date"):
            assert row[column], f"results/{table}.csv, line {place}: no {column}"
        dated = re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert dated or row["command"].startswith("published"), (table, place)


def test_rendered_tables_are_those_of_the_pages():
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    found = made.pages()
    assert {page.name for page in found} >= {"audit.md", "compare.md", "figures.md", "commands.md"}
    for page in found:
        assert page.read_text() == made.rendered(page.read_text()), "make results"
        for block in re.findall(r"<!-- results: (\w+) -->", page.read_text()):
            assert f"results/{block}.csv" in page.read_text(), "a page names its tables"


def test_settings_and_code_are_no_measured_numbers():
    page = (
        "95 % interval, `--seconds=9 s`, 150 x 150 px, 3 of 5, [link](a-9%20s.md), in 2026, 1.2.3"
    )
    assert stated_numbers.stated(page) == []
    found = stated_numbers.stated("It took 1.5 and 2,000 s, 7 % [6, 8] and −1.0 [−2.0, 3.0].")
    assert [each.key for each in found] == [
        ("1.5", "s", "", ""),
        ("2000", "s", "", ""),
        ("7", "%", "6", "8"),
        ("-1.0", "", "-2.0", "3.0"),
    ]
    page = "| what | s |\n|---|---|\n| 5 jobs | 12 |\n<!-- results: x -->\n| 9 s |\n<!-- end -->\n"
    assert [each.key for each in stated_numbers.stated(page)] == [("12", "", "", "")]
