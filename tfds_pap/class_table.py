"""`classes.csv`: what a lab's classes are called, their order of severity, which are positive."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from tfds_pap import tables, taxonomy

_YES = frozenset({"yes", "y", "true", "1", "positive"})
_NO = frozenset({"no", "n", "false", "0", "negative"})


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """What is known of a tree's classes.

    Attributes:
        names: Of the class folders, in order of severity where that is known.
        shown: What each is called in reports, on pages and in files; its name where nothing else.
        positive: Whether each counts as positive; None where nobody said.
        ordered: Whether the order is one of severity, so that distances between classes mean
            something.
    """

    names: tuple[str, ...]
    shown: tuple[str, ...]
    positive: tuple[bool, ...] | None
    ordered: bool


def without_table(names: Collection[str]) -> ClassTable:
    """Returns what names alone tell: order and positives where all are Bethesda classes.

    Args:
        names: Of the class folders.

    Example:
        >>> table = without_table(["HSIL", "NILM"])
        >>> table.names, table.positive, table.ordered
        (('NILM', 'HSIL'), (False, True), True)
        >>> without_table(["b", "a"]).positive is None
        True
    """
    ordered = taxonomy.in_order_of_severity(names)
    is_bethesda = {*names} <= {*taxonomy.STAGE2_CLASSES}
    high = taxonomy.STAGE2_CLASSES.index("HSIL")
    positive = None
    if is_bethesda:
        positive = tuple(taxonomy.STAGE2_CLASSES.index(name) >= high for name in ordered)
        if len({*positive}) < 2:
            positive = None
    return ClassTable(ordered, ordered, positive, is_bethesda)


def read(path: Path, names: Collection[str]) -> ClassTable:
    """Reads a table with the columns name, shown, order and positive; all but the first optional.

    Args:
        path: Of `classes.csv`.
        names: Of the class folders; each needs a row.

    Raises:
        PapError: If a class has no row or two, or a value cannot be meant; one line with file,
            line and what was expected.
    """
    rows = tables.read(path, ("name",), ("shown", "order", "positive"))
    lines: dict[str, tables.Row] = {}
    for row in rows:
        name = row.values["name"]
        if name not in names:
            raise tables.problem(
                path, row.line, f"expected one of the classes {', '.join(names)}; got {name!r}"
            )
        if name in lines:
            raise tables.problem(path, row.line, f"{name} is named twice")
        lines[name] = row
    if missing := sorted({*names} - lines.keys()):
        raise tables.problem(
            path, 1 + len(rows), f"expected a row for every class; none for {', '.join(missing)}"
        )
    ordered = _all_or_none(path, list(lines.values()), "order")
    if ordered:
        ranks = {name: tables.number(path, row, "order") for name, row in lines.items()}
        for name, row in lines.items():
            twins = [other for other, rank in ranks.items() if rank == ranks[name]]
            if len(twins) > 1:
                raise tables.problem(
                    path, row.line, f"order: {' and '.join(twins)} have the same place"
                )
        in_order = tuple(sorted(lines, key=ranks.__getitem__))
    else:
        in_order = taxonomy.in_order_of_severity(lines)
    shown = tuple(lines[name].values["shown"] or name for name in in_order)
    for name, text in zip(in_order, shown, strict=True):
        if shown.count(text) > 1:
            raise tables.problem(path, lines[name].line, f"two classes are shown as {text!r}")
    positive = None
    if _all_or_none(path, list(lines.values()), "positive"):
        positive = tuple(_yes(path, lines[name]) for name in in_order)
        if len({*positive}) < 2:
            raise tables.problem(
                path, 1, f"positive: expected yes and no, got {'yes' if positive[0] else 'no'} only"
            )
    known = without_table(names)
    if positive is None and known.positive is not None:
        by_name = dict(zip(known.names, known.positive, strict=True))
        positive = tuple(by_name[name] for name in in_order)
    return ClassTable(in_order, shown, positive, ordered or known.ordered)


def _all_or_none(path: Path, rows: list[tables.Row], column: str) -> bool:
    """Whether every row has a value in a column; False where none has."""
    empty = [row for row in rows if not row.values[column]]
    if empty and len(empty) < len(rows):
        raise tables.problem(
            path, empty[0].line, f"{column}: expected a value in every row, or in none"
        )
    return not empty


def _yes(path: Path, row: tables.Row) -> bool:
    text = row.values["positive"].lower()
    if text not in _YES | _NO:
        raise tables.problem(
            path, row.line, f"positive: expected yes or no, got {row.values['positive']!r}"
        )
    return text in _YES
