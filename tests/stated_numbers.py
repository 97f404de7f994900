"""Measured and published numbers that a page states, told from settings."""

import dataclasses
import re
from collections.abc import Iterator

#: What follows a measured number; the longer names first, as `s` begins `seconds`.
UNITS = (
    "images/s", "processor-seconds", "processor-ms", "processor seconds", "percentage points",
    "seconds", "minutes", "points", "times", "MiB", "KiB", "MB", "GB", "kB", "min", "ms", "us",
    "ns", "s", "%",
)  # fmt: skip

#: What bears a unit and is no result, by its words, and why.
SETTINGS = (
    (
        r"95 % (?:intervals?|of the ranges)|an? 95 % |95 %, of these seeds",
        "the level that intervals are made for",
    ),
    (r"below 90 %|reaches 95 %", "the rule that coverage or recall is held against"),
    (r"\b162 points|stages? [12]\b|3\.11 to 3\.13", "a size, a name, versions"),
    (r"HSIL\+ at 2 %|more than 5 % of", "flags and their defaults"),
    (
        r"cache of 64 MiB|at most every 10 s|some 5 ns|2 MiB (?:beside|and)|128 KiB|than 64 KiB",
        "limits",
    ),
    (r"^40[03]$", "HTTP statuses"),
    (r"unpack to 8 MB", "what libpng allows"),
    (r"hp\.Choice\([^)]*\)", "an example's hyperparameters"),
)

_NUMBER = r"(?<![\w.,:/=^-])[~±+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d:]|\.\d|,\d)"
_UNIT = r"(?:" + "|".join(map(re.escape, UNITS)) + r")(?![\w/^-])"
_INTERVAL = rf"\[\s*({_NUMBER}),\s+({_NUMBER})\]"
#: A range or a list has its unit at the end: "49 to 59 %", "2.6, 2.1 and 3.3 s", "99.0 / 98.0 %".
_LIST = rf"{_NUMBER}(?:(?:,|\s+(?:to|and|or|/|beside))\s+{_NUMBER})*"
_STATED = re.compile(
    rf"(?P<list>{_LIST})?(?(list)(?P<unit>\s*{_UNIT})?|(?=\[))(?:\s*{_INTERVAL})?"
    rf"(?:\s*\((?P<range>{_NUMBER}\s+to\s+{_NUMBER})\))?"
)
_CELL = re.compile(
    rf"(?:{_LIST}(?:\s*{_UNIT})?(?:\s*{_INTERVAL})?(?:\s*\({_NUMBER}(?:\s+to\s+{_NUMBER})?\))?(?:\s+/\s+|$))+"
)


@dataclasses.dataclass(frozen=True)
class Stated:
    """A number as a page states it.

    Attributes:
        number: Its digits, with a minus sign where there is one: "1039068", "-9.0", "98.7".
        unit: "%", "s", ..., or "" in a table whose head says it and before a bare interval.
        low: Lower end of its 95 % interval, as `number`, or "".
        high: Its upper end, or "".
        before: The words that it stands behind.
        line: The sentence or row that it stands in.
    """

    number: str
    unit: str
    low: str
    high: str
    before: str
    line: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a row of `results/stated.csv` must say."""
        return self.number, self.unit, self.low, self.high


def stated(page: str) -> list[Stated]:
    """Returns every measured or published number of a page in Markdown.

    Left out are generated tables (between `<!-- results: NAME -->` and `<!-- end -->`), code
    within a line, addresses of links, the first column of a table, and `SETTINGS`.

    Args:
        page: Its text.
    """
    page = re.sub(r"<!-- results: .*?<!-- end -->", "", page, flags=re.DOTALL)
    page = re.sub(r"\]\([^)]*\)", "]", page)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    found: list[Stated] = []
    head: list[str] = []
    for block in _blocks(page):
        if not block.startswith("|"):
            head = []
            found += _in_text(_without_settings(re.sub(r"`[^`]*`", "`", block)), "", block)
            continue
        cells = [
            cell.strip(" *") for cell in re.sub(r"`[^`]*`", "`", block).strip()[1:-1].split("|")
        ]
        if set(block) <= set("|-: "):
            continue
        if not head:
            head = cells
            continue
        for column, cell in zip(head[1:], cells[1:], strict=False):
            about = f"{cells[0]}, {column}"
            found += _in_text(
                _without_settings(cell), about, block, bare=bool(_CELL.fullmatch(cell))
            )
    return found


def _blocks(page: str) -> Iterator[str]:
    """A paragraph or list item as one line; rows of tables and lines of code by themselves."""
    gathered: list[str] = []
    item = False
    for line in [*page.splitlines(), ""]:
        # Four blanks below a list item are its text, elsewhere code.
        alone = line.startswith("|") or (line.startswith("    ") and not gathered and not item)
        starts = bool(re.match(r"\s*(?:[-*]|#+|\d+\.) ", line)) and not alone
        if not line.strip() or alone or starts:
            if gathered:
                yield " ".join(gathered)
            gathered = []
        if alone:
            yield line
        elif line.strip():
            item = starts or bool(gathered and item)
            gathered.append(line.strip())
        else:
            item = False


def _in_text(text: str, about: str, line: str, *, bare: bool = False) -> Iterator[Stated]:
    for match in _STATED.finditer(text):
        low, high = (_digits(end or "") for end in match.group(3, 4))
        unit = (match["unit"] or "").strip()
        if not (unit or low or bare):
            continue
        numbers = re.findall(_NUMBER, match["list"] or "") or [""]
        # Before an interval without a unit only the number beside it is meant.
        if low and not unit and not bare:
            numbers = numbers[-1:]
        before = about or " ".join(text[: match.start()].split()[-7:])
        for number in numbers[:-1]:
            yield Stated(_digits(number), unit, "", "", before, line)
        yield Stated(_digits(numbers[-1]), unit, low, high, before, line)
        for number in re.findall(_NUMBER, match["range"] or ""):
            yield Stated(_digits(number), unit, "", "", f"{before}, lowest to highest", line)


def _digits(number: str) -> str:
    return number.replace(",", "").replace("−", "-").lstrip("~±+")


def _without_settings(text: str) -> str:
    for phrase, _ in SETTINGS:
        text = re.sub(phrase, "…", text)
    return text
