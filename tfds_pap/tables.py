"""Small tables that people make in a spreadsheet: groups, splits, classes, nuclei.

What a spreadsheet or an editor writes is read as it was meant: UTF-8 with or without a byte order
mark, UTF-16, Windows-1252; commas, semicolons or tabs; accents composed or decomposed, as macOS
writes them. What cannot be meant is one line that names the file, the line and what was expected.
"""

import codecs
import csv
import io
import math
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tfds_pap.errors import PapError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        line: Its number in the file, from 1, the header included.
        values: From column to text, without white space around it, accents composed.
    """

    line: int
    values: Mapping[str, str]


def read(path: Path, columns: Sequence[str], optional: Collection[str] = ()) -> list[Row]:
    """Reads a table whose first line names its columns, in any order and case.

    Args:
        path: The file.
        columns: That must be there; others than these and `optional` are passed over.
        optional: That may be there; "" where they are not.

    Returns:
        Every line that holds anything, in the order of the file.

    Raises:
        PapError: If it cannot be read, lacks a column, or has a line of another length; one line.
    """
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise PapError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PapError(
            f"{path}: expected text in UTF-8, UTF-16 or Windows-1252, got byte "
            f"0x{error.object[error.start]:02x} at {error.start}"
        ) from None
    return list(_rows(path, unicodedata.normalize("NFC", text), columns, optional))


def decode(data: bytes) -> str:
    """Returns text in the encoding that a byte order mark tells, else UTF-8, else Windows-1252.

    Raises:
        UnicodeDecodeError: It is neither.

    Example:
        >>> decode("Größe".encode("utf-16")), decode("Größe".encode("cp1252"))
        ('Größe', 'Größe')
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    # UTF-16 without a mark: every other byte of ASCII is 0. The names of columns are ASCII.
    for encoding, zeros in (("utf-16-le", data[1:8:2]), ("utf-16-be", data[:8:2])):
        if len(data) > 1 and not any(zeros):
            return data.decode(encoding)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def _rows(
    path: Path, text: str, columns: Sequence[str], optional: Collection[str]
) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    first, second, *_ = (*text.splitlines()[:2], "", "")
    # Excel's own way to say what separates the values.
    is_announced = first.lower().startswith("sep=") and len(first) == 5
    announced = first[4:] if is_announced and first[4:] in _SEPARATORS else ""
    if announced:
        lines.readline()
        first = second
    separator = announced or _separator(first, columns)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    offset = 1 if announced else 0
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            got = ", ".join(name for name in header if name) or "none"
            expected = ", ".join(columns)
            raise problem(path, 1 + offset, f"expected the columns {expected}; got {got}")
        if repeated := [name for name in header if name and header.count(name) > 1]:
            raise problem(path, 1 + offset, f"the column {repeated[0]} stands there twice")
        for values in reader:
            line = reader.line_num + offset
            if not any(value.strip() for value in values):
                continue
            # Spreadsheets pad short tables with empty cells.
            if any(value.strip() for value in values[len(header) :]) or len(values) < len(header):
                raise problem(
                    path,
                    line,
                    f"expected {len(header)} values between {_SEPARATORS[separator]}, "
                    f"got {len(values)}",
                )
            named = dict(zip(header, (value.strip() for value in values), strict=False))
            yield Row(line, {name: named.get(name, "") for name in (*columns, *optional)})
    except csv.Error as error:
        raise problem(path, reader.line_num + offset, f"expected CSV ({error})") from None


def _separator(header: str, columns: Sequence[str]) -> str:
    """The one by which the header holds most of the columns; a comma where none does."""

    def known(separator: str) -> int:
        names = {name.strip().strip('"').lower() for name in header.split(separator)}
        return len(names & {*columns})

    return max(_SEPARATORS, key=known)


def number(path: Path, row: Row, column: str) -> float:
    """Returns a value as a number; a decimal comma is one.

    Args:
        path: Of the table, for the message.
        row: The line.
        column: Whose value.

    Raises:
        PapError: If it is no finite number.
    """
    text = row.values[column]
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise problem(path, row.line, f"{column}: expected a number, got {text!r}")
    return value


def problem(path: Path, line: int, what: str) -> PapError:
    """The error of a line: file, line, and what was expected."""
    return PapError(f"{path}, line {line}: {what}")


class Names:
    """Finds the files that a person names: by their path, or by a bare name that only one has."""

    def __init__(self, ids: Iterable[str]) -> None:
        """Takes the ids of all files, paths below a tree with forward slashes."""
        self._ids: dict[str, str] = {}
        self._bare: dict[str, list[str]] = {}
        for id_ in ids:
            self._ids[_key(id_)] = id_
            self._bare.setdefault(_key(id_).rpartition("/")[2], []).append(id_)

    def find(self, name: str) -> list[str]:
        r"""Returns the ids that a name can mean: none, one, or several of the same bare name.

        Args:
            name: A path below the tree, with slashes of either kind, or a file's name alone.

        Example:
            >>> names = Names(["train/1/a.png", "train/2/a.png", "train/2/b.png"])
            >>> names.find(r"train\1\a.png"), names.find("b.png"), len(names.find("a.png"))
            (['train/1/a.png'], ['train/2/b.png'], 2)
        """
        key = _key(name)
        if key in self._ids:
            return [self._ids[key]]
        return self._bare.get(key, [])


def bare_name(name: str) -> str:
    r"""Returns a file's name without its folders, accents composed, as two names are compared.

    Args:
        name: A path with slashes of either kind, or a name.

    Example:
        >>> bare_name(r"slide 3\a.jpg")
        'a.jpg'
    """
    return _key(name).rpartition("/")[2]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
