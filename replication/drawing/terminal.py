"""Tables on the terminal."""

import functools
from collections.abc import Collection, Iterable, Sequence

import rich.box
import rich.console
import rich.table

#: Characters of a line where the output is a file or a pipe.
WIDTH = 132


def console(width: int = WIDTH) -> rich.console.Console:
    """Standard output, which prints texts as they are: brackets in a file's name are no markup.

    Args:
        width: Characters of a line where the output is no terminal.
    """
    plain = functools.partial(rich.console.Console, markup=False, emoji=False, highlight=False)
    return plain() if plain().is_terminal else plain(width=width)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]] = (),
    *,
    title: str | None = None,
    right: Collection[str] = (),
    fold: Collection[str] = (),
) -> rich.table.Table:
    """Makes a table for `console`.

    Args:
        headings: One for each column.
        rows: A text for each column.
        title: Above the table.
        right: Headings of columns that are aligned to the right.
        fold: Headings of columns whose long texts are broken into lines; others end in "…".
    """
    made = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for heading in headings:
        made.add_column(
            heading,
            justify="right" if heading in right else "left",
            overflow="fold" if heading in fold else "ellipsis",
        )
    for row in rows:
        made.add_row(*row)
    return made
