"""Figures under resampling weights that the project gives without an interval: none held."""

import numpy as np


def ece(gaps: np.ndarray, numbers: np.ndarray, bins: int, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error.

    Args:
        gaps: Score - hit, float64 ``[n]``.
        numbers: Bin of each image, int64 ``[n]``.
        bins: Number of bins.
        weights: float64 ``[b, n]``: how much each image counts.

    Returns:
        float64 ``[b]``.
    """
    inside = np.eye(bins)[numbers]
    return np.abs((weights * gaps) @ inside).sum(axis=1) / weights.sum(axis=1)


def aurc(confidence: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve.

    Args:
        confidence: float64 ``[n]``.
        wrong: bool ``[n]``.
        weights: float64 ``[b, n]``.

    Returns:
        float64 ``[b]``.
    """
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    drawn = weights[:, order]
    answered = np.cumsum(drawn, axis=1)[:, ends]
    missed = np.cumsum(drawn * wrong[order], axis=1)[:, ends]
    entered = np.diff(answered, axis=1, prepend=0)
    return (entered * _ratio(missed, answered)).sum(axis=1) / answered[:, -1]


def pr_auc(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision: the step-wise area, without interpolation.

    Args:
        weights: float64 ``[b, n]``.
        positive: bool ``[n]``, at least one.
        scores: float64 ``[n]``.

    Returns:
        float64 ``[b]``.
    """
    order = np.argsort(-scores, kind="stable")
    # Images with equal scores are one step of the curve.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    drawn = weights[:, order]
    true = np.cumsum(drawn * positive[order], axis=1)[:, ends]
    called = np.cumsum(drawn, axis=1)[:, ends]
    steps = np.diff(true, axis=1, prepend=0)
    return (steps * _ratio(true, called)).sum(axis=1) / true[:, -1]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Before the first image drawn there is nothing to divide by, and nothing to weigh it by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
