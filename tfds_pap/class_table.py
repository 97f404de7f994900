"""`classes.csv`: what a lab's classes are called, their order of severity, which are positive."""

from collections.abc import Sequence
from pathlib import Path

from tfds_pap import tables
from tfds_pap.classes import Classes, in_order_of_severity

_YES = frozenset({"yes", "y", "true", "1", "positive"})
_NO = frozenset({"no", "n", "false", "0", "negative"})


def of_tree(root: Path, names: Sequence[str]) -> Classes:
    """Returns what is known of a tree's classes: `classes.csv`, or what the names alone tell.

    Args:
        root: The tree.
        names: Of its class folders, in the order in which labels are where nothing else is said.

    Raises:
        PapError: If the table cannot be used.
    """
    path = root / "classes.csv"
    return read(path, names) if path.exists() else Classes.known(names)


def read(path: Path, names: Sequence[str]) -> Classes:
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
        severity = in_order_of_severity(lines)
        if Classes.known(in_order).ordered and in_order != severity:
            expected = f"order: expected that of the Bethesda System, {', '.join(severity)}"
            raise tables.problem(path, 1, expected)
    else:
        in_order = in_order_of_severity(lines)
    shown = tuple(lines[name].values["shown"] or name for name in in_order)
    for name, text in zip(in_order, shown, strict=True):
        if shown.count(text) > 1:
            raise tables.problem(path, lines[name].line, f"two classes are shown as {text!r}")
    positive: tuple[str, ...] = ()
    name = "positive"
    if _all_or_none(path, list(lines.values()), "positive"):
        positive = tuple(name for name in in_order if _yes(path, lines[name]))
        if not 0 < len(positive) < len(in_order):
            raise tables.problem(
                path, 1, f"positive: expected yes and no, got {'yes' if positive else 'no'} only"
            )
        if len(positive) == 1:
            name = shown[in_order.index(positive[0])]
    known = Classes.known(in_order)
    if (known.ordered and not positive) or positive == known.positive:
        positive, name = known.positive, known.positive_name
    return Classes(in_order, shown, ordered or known.ordered, positive, name)


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
