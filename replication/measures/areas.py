"""How sure the area under a ROC curve is."""

import math
from collections.abc import Sequence

import numpy as np

from replication.measures.intervals import Interval, resampling_units
from replication.measures.shares import by_unit, share_by_unit


def roc_interval(
    scores: np.ndarray,
    positives: np.ndarray,
    groups: Sequence[str],
    confidence: float = 0.95,
) -> Interval:
    """Interval of a ROC-AUC, or of the mean of several over models or classes.

    The area is the mean over the positive images of the share of negatives that score lower, and
    as well the mean over the negatives of the share of positives that score higher. Both are
    shares with their own interval by group; their errors add up as independent ones do. Of a mean
    over classes the errors are taken as one, since the same images make all of them: of two classes
    both areas are the same.

    Source: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44 (1988) 837-845, for
    the two parts (placement values).

    Args:
        scores: float64 ``[classes, models, n]``.
        positives: bool ``[classes, n]``, each with both kinds.
        groups: Group of each image, ``[n]``; '' = unknown.
        confidence: Between 0 and 1.

    Returns:
        The interval of the mean over classes and models. Of a single class it is NaN where one side
        of it stands in one group; in a mean nothing is taken as known of that side.
    """
    units, kind = resampling_units(groups)
    areas, ends, both_sides = [], [], True
    for of_class, positive in zip(scores, positives, strict=True):
        placed = np.mean([_placements(one, positive) for one in of_class], axis=0)
        sides = [
            share_by_unit(*by_unit(placed, side, units), confidence)
            for side in (positive, ~positive)
        ]
        both_sides &= all(share.has_interval for share in sides)
        ends.append(
            (
                math.hypot(*(share.value - share.low for share in sides)),
                math.hypot(*(share.high - share.value for share in sides)),
            )
        )
        areas.append(placed[positive].mean())
    middle, (below, above), classes = float(np.mean(areas)), np.mean(ends, axis=0), len(areas)
    if classes == 1 and not both_sides:
        return Interval(math.nan, math.nan, f"no interval: one side is of one {kind[:-1]}")
    return Interval(
        max(0.0, float(middle - below)),
        min(1.0, float(middle + above)),
        f"Wilson of the placements of both sides by {kind.removesuffix('s')}, combined",
    )


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """For each image the share of the other side that it is on the right side of; ties are half."""
    placed = np.empty(len(scores))
    for side, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~side])
        mine = sign * scores[side]
        lower = np.searchsorted(others, mine, side="left")
        upper = np.searchsorted(others, mine, side="right")
        placed[side] = (lower + upper) / 2 / len(others)
    return placed
