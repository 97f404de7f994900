"""How sure a figure over classes is: balanced accuracy, F1, kappa, and differences of such.

A class that is all right has no spread among resamples, and one that stands in few groups has
little; so resampling alone makes a mean over classes too sure. Here each class moves the figure by
as much as the interval of its own share of right images says, one class at a time, and these moves
add up as independent errors do. Classes that fail together, and how errors spread over the wrong
classes, are what resampled groups add. The wider of the two stands.

Every figure is that of other images with these class shares: how many images of each class a
folder holds was somebody's choice.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from replication.measures import confusion
from replication.measures.intervals import Interval, group_weights, resampling_units
from replication.measures.shares import Share, by_unit, share_by_unit

#: Said wherever such a figure stands.
AT_CLASS_SHARES = (
    "F1, precision and kappa, and their intervals, are those at the class shares of these images; "
    "where classes have other shares, they differ."
)

#: From matrices ``[b, m, k, k]`` of m models to named figures ``[b]``.
Figures = Callable[[np.ndarray], Mapping[str, np.ndarray]]

#: Cells of matrices held at a time: 4 million float64 are 32 MB.
_CHUNK_ENTRIES = 4_000_000


def mean_figures(present: np.ndarray, order: Sequence[int] | None, names: Sequence[str]) -> Figures:
    """Means over models of figures of `confusion.statistics`.

    Args:
        present: bool ``[k]``: classes that have images.
        order: Class indices in order of severity; None where they have none.
        names: Which figures; 'f1 3' is the F1 of class 3.
    """

    def figures(matrices: np.ndarray) -> dict[str, np.ndarray]:
        flat = matrices.reshape(-1, *matrices.shape[2:])
        of_each = confusion.statistics(flat, present, order)
        by_class = of_each.pop("f1")
        of_each |= {f"f1 {c}": by_class[:, c] for c in range(by_class.shape[1])}
        return {name: of_each[name].reshape(matrices.shape[:2]).mean(axis=1) for name in names}

    return figures


def confusion_intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: Sequence[str],
    figures: Figures,
    *,
    classes: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of figures of one model, or of their mean over several.

    Args:
        labels: int64 ``[n]``.
        predicted: int64 ``[m, n]``, of each model.
        groups: Group of each image, ``[n]``; '' = unknown.
        figures: Computes named figures of the matrices of all models.
        classes: Number of classes k.
        confidence: Between 0 and 1.
        resamples: Number of resamples of groups.
        seed: Seed of the resamples.

    Returns:
        By name. NaN ends, and why in `method`, where none holds.
    """
    right = (predicted == labels).mean(axis=0)

    def moves(c: int, units: np.ndarray) -> tuple[list[np.ndarray], list[Share]]:
        share = share_by_unit(*by_unit(right, labels == c, units), confidence)
        every = np.ones(len(predicted))
        return [(share.value - end) * every for end in (share.low, share.high)], [share]

    return _intervals(
        labels, predicted, groups, figures, [moves], classes, confidence, resamples, seed, most=1.0
    )


def difference_intervals(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str],
    figures: Figures,
    *,
    classes: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of a figure of some models minus that of others, on the same images.

    A class moves the difference by its images that only the first, or only the second, names
    rightly; or else by what each side alone names rightly, as if the two had been scored on
    different images. Both are too wide rather than too narrow, and the narrower stands.

    Args:
        labels: int64 ``[n]``.
        first: int64 ``[m, n]``.
        second: int64 ``[m, n]``; row i is paired with row i of the first.
        groups: Group of each image, ``[n]``; '' = unknown.
        figures: Computes them of the matrices of the first m models or of the second m alone.
        classes: Number of classes k.
        confidence: Between 0 and 1.
        resamples: Number of resamples of groups.
        seed: Seed of the resamples.

    Returns:
        As `confusion_intervals`.
    """
    models = len(first)
    only = [
        ((one == labels) & (other != labels)).mean(axis=0)
        for one, other in ((first, second), (second, first))
    ]

    def gaps(matrices: np.ndarray) -> dict[str, np.ndarray]:
        one, other = figures(matrices[:, :models]), figures(matrices[:, models:])
        return {name: one[name] - other[name] for name in one}

    def paired(c: int, units: np.ndarray) -> tuple[list[np.ndarray], list[Share]]:
        shares = [share_by_unit(*by_unit(one, labels == c, units), confidence) for one in only]
        right = [float((one == labels)[:, labels == c].mean()) for one in (first, second)]
        lost = []
        for side, share in enumerate(shares):
            mine, other = np.repeat(np.eye(2)[[side, 1 - side]], models, axis=1)
            lost.append((share.value - share.low) * mine)
            # More images that only this side names rightly: the other loses them, while it has any.
            more = share.high - share.value
            taken = min(more, right[1 - side])
            lost.append(taken * other - (more - taken) * mine)
        return lost, shares

    def apart(c: int, units: np.ndarray) -> tuple[list[np.ndarray], list[Share]]:
        lost, shares = [], []
        for one, mine in zip((first, second), np.repeat(np.eye(2), models, axis=1), strict=True):
            right = (one == labels).mean(axis=0)
            share = share_by_unit(*by_unit(right, labels == c, units), confidence)
            lost += [(share.value - end) * mine for end in (share.low, share.high)]
            shares.append(share)
        return lost, shares

    both = np.concatenate([first, second])
    return _intervals(
        labels, both, groups, gaps, [paired, apart], classes, confidence, resamples, seed
    )


def _intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: Sequence[str],
    figures: Figures,
    ways: Sequence[Callable[[int, np.ndarray], tuple[list[np.ndarray], list[Share]]]],
    classes: int,
    confidence: float,
    resamples: int,
    seed: int,
    most: float | None = None,
) -> dict[str, Interval]:
    """The narrowest of several ways to move the classes, or resampling where that is wider."""
    units, kind = resampling_units(groups)
    counts = _counts(labels, predicted, units, classes)
    once = counts.sum(axis=0)[None]
    values = {name: float(of[0]) for name, of in figures(once).items()}
    over = f"{len(counts)} {kind if len(counts) > 1 else kind[:-1]}"
    if len(counts) == 1:
        return dict.fromkeys(values, Interval(np.nan, np.nan, f"no interval from {over}"))
    present = np.flatnonzero(once[0, 0].sum(axis=1))
    moved = [[moves(int(c), units) for c in present] for moves in ways]
    reach = [
        _reach(figures, once, values, present, [lost for lost, _ in of_classes])
        for of_classes in moved
    ]
    drawn = _resampled(figures, counts, confidence, resamples, seed)
    if most is not None:
        drawn = {name: _reflected(values[name], *ends, most) for name, ends in drawn.items()}
    method = (
        f"Wilson of each class, combined, or resampling of {over} where wider, at the class shares "
        "of these images"
    )
    alone = sum(not all(share.has_interval for share in of_class) for _, of_class in moved[0])
    if alone:
        classed = "1 class stands" if alone == 1 else f"{alone} classes stand"
        method += f"; {classed} in one group, so that nothing is taken as known of it"
    intervals = {}
    for name, value in values.items():
        low = max(value - below[name] for below, _ in reach)
        high = min(value + above[name] for _, above in reach)
        intervals[name] = Interval(
            float(np.fmin(low, drawn[name][0])), float(np.fmax(high, drawn[name][1])), method
        )
        if not np.isfinite(value):
            intervals[name] = Interval(np.nan, np.nan, "no interval of an undefined figure")
    return intervals


def _reach(
    figures: Figures,
    once: np.ndarray,
    values: Mapping[str, float],
    present: np.ndarray,
    moves: Sequence[Sequence[np.ndarray]],
) -> tuple[dict[str, float], dict[str, float]]:
    """How far down and up the figures go where each class moves, added as independent errors."""
    moved = [
        _moved(once[0], int(c), lost) for c, of in zip(present, moves, strict=True) for lost in of
    ]
    away = {name: of - values[name] for name, of in figures(np.array(moved)).items()}
    below, above = (
        {name: float(np.sqrt((end(of, 0) ** 2).sum())) for name, of in away.items()}
        for end in (np.minimum, np.maximum)
    )
    return below, above


def _counts(
    labels: np.ndarray, predicted: np.ndarray, units: np.ndarray, classes: int
) -> np.ndarray:
    """Confusion matrices by unit and model, float64 ``[units, m, k, k]``."""
    counts = np.zeros((int(units.max()) + 1, len(predicted), classes, classes))
    for model, named in enumerate(predicted):
        np.add.at(counts[:, model], (units, labels, named), 1.0)
    return counts


def _moved(matrices: np.ndarray, c: int, lost: np.ndarray) -> np.ndarray:
    """Takes a share of class c's images from the right ones, or gives it to them.

    Args:
        matrices: float64 ``[m, k, k]``.
        c: The class, with images.
        lost: float64 ``[m]``, of each model; below 0 = gained.

    Returns:
        Other matrices. Wrong images keep their proportions, with one image of none in particular.
    """
    moved, classes = matrices.copy(), matrices.shape[-1]
    row = matrices[:, c]
    total = row.sum(axis=1)
    right = np.clip(row[:, c] - lost * total, 0, total)
    wrong = row + 1 / max(classes - 1, 1)
    wrong[:, c] = 0
    if classes > 1:
        moved[:, c] = wrong / wrong.sum(axis=1, keepdims=True) * (total - right)[:, None]
    moved[:, c, c] = right
    # What does not move must not change by the smoothing either.
    moved[lost == 0] = matrices[lost == 0]
    return moved


def _reflected(value: float, low: float, high: float, most: float) -> tuple[float, float]:
    """Widens percentiles to their mirror image, in the logarithm of what is missing to the most.

    Where few groups fail, samples that hold fewer of them than usual look too good, and their
    resamples do not reach down to the truth; what they lack above is what is missing below (the
    basic bootstrap: A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application"
    (1997), section 5.2).
    """
    missing = most - value
    if not (high < most and missing > 0):
        return low, high
    return min(low, most - missing**2 / (most - high)), max(high, most - missing**2 / (most - low))


def _resampled(
    figures: Figures, counts: np.ndarray, confidence: float, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentiles over resampled groups, each class at its own number of images."""
    units, models, classes, _ = counts.shape
    flat = counts.reshape(units, -1)
    support = counts.sum(axis=0).sum(axis=-1, keepdims=True)
    parts: dict[str, list[np.ndarray]] = {}
    rows = max(1, _CHUNK_ENTRIES // max(flat.shape[1], units))
    for weights in group_weights(units, resamples, seed, confidence, rows):
        drawn = (weights @ flat).reshape(-1, models, classes, classes)
        below = drawn.sum(axis=-1, keepdims=True)
        drawn = np.divide(drawn * support, below, out=np.zeros_like(drawn), where=below > 0)
        for name, values in figures(drawn).items():
            parts.setdefault(name, []).append(values)
    tail = 50 * (1 - confidence)
    if not parts:
        empty = figures(counts.sum(axis=0)[None])
        return dict.fromkeys(empty, (np.nan, np.nan))
    ends = {}
    for name, chunks in parts.items():
        every = np.concatenate(chunks)
        low, high = np.nan, np.nan
        if np.isfinite(every).all():
            low, high = np.percentile(every, [tail, 100 - tail])
        ends[name] = float(low), float(high)
    return ends
