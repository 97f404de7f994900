"""Figures of confusion matrices, of one or of thousands of resamples at once."""

from collections.abc import Sequence

import numpy as np


def counts(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray
) -> np.ndarray:
    """Confusion matrices of many resamples in one matrix product.

    Args:
        labels: int64 ``[n]``.
        predicted: int64 ``[n]``.
        classes: Number of classes k.
        weights: float64 ``[b, n]``.

    Returns:
        float64 ``[b, k, k]``, rows true, columns predicted.
    """
    cells = np.eye(classes * classes)[labels * classes + predicted]
    return (weights @ cells).reshape(len(weights), classes, classes)


def statistics(
    confusion: np.ndarray,
    present: np.ndarray,
    order: Sequence[int] | None,
    severe: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Every figure that a confusion matrix holds, for many matrices at once.

    Means over classes are taken over ``present``, and are undefined (NaN) in a resample that lacks
    one of these. The precision of a class that is never named counts as 0 in a mean, as in
    scikit-learn.

    Args:
        confusion: float64 ``[b, k, k]``, rows true.
        present: bool ``[k]``, the classes that have images at all.
        order: The class indices in order of severity, for the quadratic kappa; None: there is none.
        severe: The class indices of HSIL+, from `Classes.severe`; none where it is not asked.

    Returns:
        Arrays ``[b]``, and ``f1`` as ``[b, k]``: 'accuracy', 'balanced_accuracy',
        'quadratic_kappa' (given an order), 'macro_' and 'weighted_' 'precision', 'sensitivity' and
        'f1',
        'macro_specificity' and, of severe classes, 'hsil_plus_sensitivity' and
        'hsil_plus_specificity'; NaN where one is undefined.
    """
    ones = np.ones(confusion.shape[-1])
    support, named = confusion @ ones, ones @ confusion
    hits = np.einsum("bii->bi", confusion)
    total = support @ ones
    missing = (support[:, present] == 0).any(axis=1)
    others = total[:, None] - support
    by_class = {
        "precision": _ratio(hits, named, 0.0),
        "sensitivity": _ratio(hits, support),
        "specificity": _ratio(others - named + hits, others),
        "f1": _ratio(2 * hits, np.where(support > 0, support + named, 0)),
    }
    figures = {"accuracy": _ratio(hits @ ones, total), "f1": by_class["f1"]}
    mean = np.full(present.sum(), 1 / max(present.sum(), 1))
    for name, values in by_class.items():
        figures[f"macro_{name}"] = np.where(missing, np.nan, values[:, present] @ mean)
        if name != "specificity":
            shares = np.where(support > 0, values * support, 0)
            figures[f"weighted_{name}"] = _ratio(shares @ ones, total)
    figures["balanced_accuracy"] = figures["macro_sensitivity"]
    if order is not None:
        rank = np.argsort(np.asarray(order))
        distance = (rank[:, None] - rank[None, :]) ** 2.0
        observed = confusion.reshape(len(confusion), -1) @ distance.ravel() * total
        expected = ((support @ distance) * named) @ ones
        figures["quadratic_kappa"] = 1 - _ratio(observed, expected)
    if severe:
        mild = [c for c in range(len(ones)) if c not in severe]
        for name, members in (("sensitivity", severe), ("specificity", mild)):
            right = confusion[:, members][:, :, members].sum(axis=(1, 2))
            figures[f"hsil_plus_{name}"] = _ratio(right, support[:, members].sum(axis=1))
    return figures


def _ratio(above: np.ndarray, below: np.ndarray, undefined: float = np.nan) -> np.ndarray:
    """Of arrays float64 that broadcast, the first with the shape of the result."""
    return np.divide(above, below, out=np.full(above.shape, undefined), where=below > 0)
