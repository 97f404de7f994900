"""Where the nuclei of a field really are, and what they are."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfds_pap import tables
from tfds_pap.classes import BETHESDA, Classes
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Atypical squamous cells: stage 1 should find them, and no class of stage 2 stands for them.
ATYPICAL = ("ASC-US", "ASC-H")


#: What nuclei are whose label is none of a lab's own classes.
OTHER = "other"


def labels_of(classes: Classes) -> tuple[str, ...]:
    """Returns every label that a nucleus may have: the classes of stage 2, and then the others.

    The others count in detection only: atypical cells beside Bethesda classes, and beside a lab's
    own classes every other label, together.

    Args:
        classes: Of stage 2.
    """
    if not set(classes.names) <= set(BETHESDA):
        return (*classes.names, OTHER)
    return (*classes.names, *(name for name in ATYPICAL if name not in classes.names))


_PAPERS = Classes.known(STAGE2_CLASSES)

_COLUMNS = ("field", "x", "y", "label")


@dataclasses.dataclass(frozen=True, eq=False)
class Nuclei:
    """The annotated nuclei of one field.

    Attributes:
        x: Pixels of the file from its left edge, float64 `[n]`.
        y: The same from its top edge, float64 `[n]`.
        labels: Each one of `labels_of` the classes, str `[n]`.
        classes: Of stage 2.
    """

    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    classes: Classes = _PAPERS

    def __len__(self) -> int:
        return len(self.x)

    @property
    def label_ids(self) -> np.ndarray:
        """Positions in `labels_of`, of which those of stage 2 come first, int64 `[n]`."""
        known = labels_of(self.classes)
        return np.array([known.index(label) for label in self.labels], np.int64)

    @classmethod
    def of(
        cls,
        x: Sequence[float],
        y: Sequence[float],
        labels: Sequence[str],
        *,
        classes: Classes = _PAPERS,
    ) -> "Nuclei":
        """Returns nuclei from any sequences.

        Args:
            x: Pixels of the file from its left edge.
            y: Pixels of the file from its top edge.
            labels: Each one of `labels_of` the classes.
            classes: Of stage 2.
        """
        return cls(np.array(x, float), np.array(y, float), np.array(labels, dtype=str), classes)


def read_nuclei(path: Path, classes: Classes = _PAPERS) -> dict[str, Nuclei]:
    """Reads annotated nuclei.

    Args:
        path: CSV with the columns field (a file's path or name), x, y (pixels of that file) and
            label (one of `labels_of` the classes), in any order.
        classes: Of stage 2.

    Returns:
        By `tables.bare_name` of the field, in the order of the file. A field without a line is not
        annotated.

    Raises:
        PapError: If it is no such table, names a place twice or two fields of one name, or has no
            nucleus; the message gives the line.
    """
    rows: dict[str, list[tuple[float, float, str]]] = {}
    lines: dict[tuple[str, float, float], int] = {}
    named: dict[str, str] = {}
    for line, (name, x, y, label) in _rows(path, classes):
        field = tables.bare_name(name)
        if named.setdefault(field, name) != name:
            raise tables.problem(
                path, line, f"expected one field of a name, got {named[field]} and {name}"
            )
        first = lines.setdefault((field, x, y), line)
        if first != line:
            raise tables.problem(path, line, f"the same field, x and y as in line {first}")
        rows.setdefault(field, []).append((x, y, label))
    if not rows:
        raise PapError(f"{path}: expected a line for each annotated nucleus, got none")
    return {
        field: Nuclei.of(*zip(*nuclei, strict=True), classes=classes)
        for field, nuclei in rows.items()
    }


def _rows(path: Path, classes: Classes) -> Iterator[tuple[int, tuple[str, float, float, str]]]:
    for row in tables.read(path, _COLUMNS):
        field, label = row.values["field"], row.values["label"]
        if not field:
            raise tables.problem(path, row.line, "expected the name of a field, got none")
        known = labels_of(classes)
        if label not in known and label and OTHER in known:
            label = OTHER
        if label not in known:
            expected = f"expected one of the labels {', '.join(known)}, got {label!r}"
            raise tables.problem(path, row.line, expected)
        x, y = (_pixels(path, row, column) for column in ("x", "y"))
        yield row.line, (field, x, y, label)


def _pixels(path: Path, row: tables.Row, column: str) -> float:
    value = tables.number(path, row, column)
    if value < 0:
        text = row.values[column]
        raise tables.problem(path, row.line, f"{column}: expected pixels, 0 or more, got {text!r}")
    return value
