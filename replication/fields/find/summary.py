"""What a field, or a slide of several fields, comes to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replication.fields.find.cells import Cells
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Cells that the slide-level score is a mean over.
_MOST_SUSPICIOUS = 10

DEFINITION = (
    f"mean calibrated probability of HSIL or SCC over the {_MOST_SUSPICIOUS} cells for which it is "
    "highest (over all, where there are fewer)"
)


def summary(cells: Cells) -> dict[str, Any]:
    """Sums cells up.

    Args:
        cells: Of one field, or of the fields of one slide.

    Returns:
        "cells" (how many), "counts" (by class), "most_severe" (the most severe class that any cell
        was named; None without cells) and "slide_score" ("value", None without cells; "cells" that
        it is a mean over; "definition").
    """
    counts = np.bincount(cells.class_ids, minlength=len(STAGE2_CLASSES))
    highest = np.sort(cells.hsil_plus)[::-1][:_MOST_SUSPICIOUS]
    return {
        "cells": len(cells),
        "counts": dict(zip(STAGE2_CLASSES, counts.tolist(), strict=True)),
        "most_severe": STAGE2_CLASSES[cells.class_ids.max()] if len(cells) else None,
        "slide_score": {
            "value": float(highest.mean()) if len(highest) else None,
            "cells": len(highest),
            "definition": DEFINITION,
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
    names = [field.name for field in dataclasses.fields(Cells)]
    return Cells(**{name: np.concatenate([getattr(c, name) for c in cells]) for name in names})
