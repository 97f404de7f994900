"""The page of a sweep: what finds most, the figure, and a line a setting."""

from collections.abc import Sequence
from pathlib import Path

from replication.drawing import pages, shown
from replication.fields.judge.sweep import DEFAULT, Row
from replication.fields.show import answer
from replication.fields.show.sweep_figure import sweep_figure
from tfds_pap import files
from tfds_pap.classes import Classes


def write(
    directory: Path,
    rows: Sequence[Row],
    fields: int,
    announcement: str,
    classes: Classes,
    *,
    complete: bool,
) -> Path:
    """Writes `sweep.html`; it loads nothing from outside.

    Args:
        directory: Where to.
        rows: A setting each, at least one.
        fields: How many annotated fields were read.
        announcement: Whose images these are, in words.
        classes: What is known of the classes of stage 2.
        complete: Whether every cell of the fields is annotated.
    """
    page = pages.template("replication.fields.show", "sweep_page.html.j2").render(
        announcement=announcement,
        answer=answer.of_sweep(rows, fields, complete=complete),
        figure_uri=shown.svg(sweep_figure(rows)),
        rows=rows,
        looked_for=classes.positive_name if classes.severe else None,
        default=DEFAULT,
        shown=shown.shown,
    )
    path = directory / "sweep.html"
    files.write_atomically(path, page)
    return path
