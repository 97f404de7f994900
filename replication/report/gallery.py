"""The report's gallery: test images that were named wrong or right, by how sure the model was."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from replication.drawing import shown
from replication.measures.predictions import Predictions
from replication.runs import results

#: Returns the uint8 RGB images ``[height, width, 3]`` of a stage by their ids, in their order.
Pixels = Callable[[int, Sequence[str]], list[np.ndarray]]

#: From a fit, ids and the class to explain of each (int64 ``[n]``) to uint8 RGB overlays
#: ``[height, width, 3]``, in the order of the ids.
HeatMaps = Callable[[results.Fit, Sequence[str], np.ndarray], list[np.ndarray]]


def gallery(
    fit: results.Fit, pixels: Pixels, limit: int, heat_maps: HeatMaps | None = None
) -> list[dict[str, Any]]:
    """Chooses cells: wrong ones first, since they teach most.

    Args:
        fit: The fit whose test images are shown.
        pixels: Where the images come from.
        limit: Cells in each row.
        heat_maps: Explains the named class of each cell; None = no explanation.

    Returns:
        Rows for the template: 'title', 'cells', 'total' (images the row was chosen from), 'empty'
        (said where there are none).

    Raises:
        ValueError: `pixels` or `heat_maps` gave another number of images than asked for, or other
            than uint8 RGB ones.
    """
    test = fit.predictions.select("test")
    sure, right = test.probabilities.max(axis=1), test.predicted == test.labels

    def pick(of: np.ndarray, surest: bool) -> list[int]:
        sign = -1 if surest else 1
        order = sorted(np.flatnonzero(of), key=lambda row: (sign * sure[row], test.ids[row]))
        return [int(row) for row in order[:limit]]

    rows = (
        ("Wrong, and most confident", "wrong", pick(~right, True)),
        ("Right, and least confident", "right", pick(right, False)),
        ("Right, and most confident", "right", pick(right, True)),
    )
    wanted = list(dict.fromkeys(row for *_, some in rows for row in some))
    ids = [test.ids[row] for row in wanted]
    images = pixels(fit.stage, ids)
    maps = heat_maps(fit, ids, test.predicted[wanted]) if heat_maps else [None] * len(ids)
    cells = {
        row: _cell(test, row, image, heat)
        for row, image, heat in zip(wanted, images, maps, strict=True)
    }
    total = {"wrong": int((~right).sum()), "right": int(right.sum())}
    return [
        {
            "title": title,
            "cells": [cells[row] for row in some],
            "total": total[kind],
            "empty": f"No test image was named {kind}.",
        }
        for title, kind, some in rows
    ]


def _cell(
    test: Predictions, row: int, image: np.ndarray, heat: np.ndarray | None
) -> dict[str, Any]:
    named = int(test.predicted[row])
    return {
        "id": test.ids[row],
        "true": test.class_names[test.labels[row]],
        "named": test.class_names[named],
        "right": named == test.labels[row],
        "coarse": max(image.shape[:2]) < shown.COARSE,
        "image": shown.thumbnail(image),
        "heat_map": "" if heat is None else shown.thumbnail(heat),
        "probabilities": [
            {"name": name, "percent": f"{100 * value:.1f}", "top": c == named}
            for c, (name, value) in enumerate(
                zip(test.class_names, test.probabilities[row], strict=True)
            )
        ],
    }
