"""How sure the area under a ROC curve is, and a mean of numbers that are no shares."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from replication.intervals import Interval, resampling_units
from replication.shares import LEAST_GROUPS, by_unit, share_by_unit


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
    over classes, those of the classes do too.

    Source: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44 (1988) 837-845, for
    the two parts (placement values).

    Args:
        scores: float64 ``[classes, models, n]``.
        positives: bool ``[classes, n]``, each with both kinds.
        groups: Of each image; '' = unknown.
        confidence: Between 0 and 1.

    Returns:
        The interval of the mean over classes and models; NaN where one side of a class stands in
        one group.
    """
    units, kind = resampling_units(groups)
    areas, below, above = [], 0.0, 0.0
    for of_class, positive in zip(scores, positives, strict=True):
        placed = np.mean([_placements(one, positive) for one in of_class], axis=0)
        for side in (positive, ~positive):
            found = share_by_unit(*by_unit(placed, side, units), confidence)
            below += (found.value - found.low) ** 2
            above += (found.high - found.value) ** 2
        areas.append(placed[positive].mean())
    middle, classes = float(np.mean(areas)), len(areas)
    return Interval(
        max(0.0, middle - math.sqrt(below) / classes),
        min(1.0, middle + math.sqrt(above) / classes),
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


def mean_interval(
    values: np.ndarray, groups: Sequence[str], confidence: float = 0.95
) -> Interval:
    """Interval of the mean of numbers of 0 or more, such as losses, by group.

    Student's interval of the logarithm of the mean, as such means are skewed; its variance is that
    of a ratio over groups (W. G. Cochran, "Sampling Techniques", 1977, section 6.4).

    Args:
        values: float64 ``[n]``, 0 or more.
        groups: Of each image; '' = unknown.
        confidence: Between 0 and 1.

    Returns:
        The interval; NaN from one group, or where no value differs.
    """
    units, kind = resampling_units(groups)
    return ratio_interval(*by_unit(values, np.ones(len(values), bool), units), kind, confidence)


def ratio_interval(
    sums: np.ndarray, sizes: np.ndarray, kind: str, confidence: float = 0.95
) -> Interval:
    """The same from sums by unit.

    Args:
        sums: float64 ``[units]``, 0 or more.
        sizes: float64 ``[units]``, what they are sums over.
        kind: 'groups', 'images' or what a unit is.
        confidence: Between 0 and 1.
    """
    counted = sizes > 0
    sums, sizes = sums[counted], sizes[counted]
    total, units = sizes.sum(), len(sizes)
    groups = total**2 / (sizes**2).sum() if units else 0.0
    if groups < LEAST_GROUPS:
        return Interval(math.nan, math.nan, f"no interval from one {kind.removesuffix('s')}")
    mean = sums.sum() / total
    variance = units / (units - 1) * ((sums - mean * sizes) ** 2).sum() / total**2
    if not (mean > 0 and variance > 0):
        return Interval(math.nan, math.nan, f"no interval: no {kind.removesuffix('s')} differs")
    width = stats.t.ppf((1 + confidence) / 2, groups - 1) * math.sqrt(variance) / mean
    method = f"Student's of the logarithm of the mean, by {kind.removesuffix('s')}"
    return Interval(float(mean * math.exp(-width)), float(mean * math.exp(width)), method)
