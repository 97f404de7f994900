"""What a field, or a slide of several fields, comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replication.fields.find.cells import ARRAYS, Cells

#: Cells that the slide-level score is a mean over.
_MOST_SUSPICIOUS = 10


def definition(positive: str) -> str:
    """Says what the slide-level score is.

    Args:
        positive: What is looked for, in words.
    """
    return (
        f"mean calibrated probability of {positive} over the {_MOST_SUSPICIOUS} cells for which it "
        "is highest (over all, where there are fewer)"
    )


def summary(cells: Cells) -> dict[str, Any]:
    """Sums cells up.

    Args:
        cells: Of one field, or of the fields of one slide.

    Returns:
        "cells" (how many), "counts" (by class), "most_severe" (the most severe class that any cell
        was named; None without cells, or an order of severity) and "slide_score" ("value", None
        without cells, or classes that are looked for; "cells" that it is a mean over;
        "definition").
    """
    classes = cells.classes
    counts = np.bincount(cells.class_ids, minlength=len(classes.names))
    highest = np.sort(cells.hsil_plus)[::-1][:_MOST_SUSPICIOUS] if classes.severe else np.zeros(0)
    worst = None
    if classes.severity is not None and len(cells):
        worst = [n for n in classes.severity if counts[n]][-1]
    return {
        "cells": len(cells),
        "counts": dict(zip(classes.names, counts.tolist(), strict=True)),
        "most_severe": None if worst is None else classes.names[worst],
        "slide_score": {
            "value": float(highest.mean()) if len(highest) else None,
            "cells": len(highest),
            "definition": definition(" or ".join(classes.positive)),
        },
    }


def flat(summed: Mapping[str, Any]) -> dict[str, object]:
    """Returns a summary as a row of a table: cells, each class, most_severe, slide_score.

    Args:
        summed: From `summary`.
    """
    score = summed["slide_score"]["value"]
    return {
        "cells": summed["cells"],
        **summed["counts"],
        "most_severe": summed["most_severe"] or "",
        "slide_score": "" if score is None else round(score, 6),
    }


def together(cells: Sequence[Cells]) -> Cells:
    """Puts the cells of several fields into one table; their places mean nothing there.

    Args:
        cells: Of each field.
    """
    arrays = {name: np.concatenate([getattr(c, name) for c in cells]) for name in ARRAYS}
    return Cells(**arrays, classes=cells[0].classes)
