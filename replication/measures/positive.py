"""What is looked for: HSIL+ among Bethesda classes, cells among regions, what a lab declares."""

import dataclasses

import numpy as np

from replication.measures.predictions import Predictions


@dataclasses.dataclass(frozen=True, eq=False)
class PositiveClass:
    """What is looked for, against the rest.

    Attributes:
        name: 'HSIL+', 'cell', or what the classes declare.
        scores: Its probability, float64 ``[n]``, 0..1.
        truth: Whether the image is one, bool ``[n]``.
    """

    name: str
    scores: np.ndarray
    truth: np.ndarray


def positive_class(predictions: Predictions) -> PositiveClass | None:
    """Turns the classes of a stage into one question.

    Args:
        predictions: Predictions of any classes.

    Returns:
        HSIL+ (HSIL or SCC) of Bethesda classes, 'cell' of stage 1, what other classes declare to
        be positive, and None where nobody said.
    """
    members = predictions.classes.positives
    if not members:
        return None
    total = predictions.probabilities.sum(axis=1)
    # Rounding may put the share a hair above 1.
    scores = (predictions.probabilities[:, members].sum(axis=1) / total).clip(0, 1)
    truth = np.isin(predictions.labels, members)
    return PositiveClass(predictions.classes.positive_name, scores, truth)
