"""What each stage looks for: HSIL+ among the four Bethesda classes, cells among regions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from replication.measures.predictions import Predictions
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES


@dataclasses.dataclass(frozen=True, eq=False)
class PositiveClass:
    """What is looked for, against the rest.

    Attributes:
        name: 'HSIL+' or 'cell'.
        scores: Its probability, float64 ``[n]``, 0..1.
        truth: Whether the image is one, bool ``[n]``.
    """

    name: str
    scores: np.ndarray
    truth: np.ndarray


def hsil_plus(names: Sequence[str]) -> list[int]:
    """Where HSIL and SCC, together HSIL+, stand among the four Bethesda classes.

    Args:
        names: Class names, in the order of the probabilities.

    Returns:
        Their positions; none where the classes are others.

    Example:
        >>> hsil_plus(("NILM", "LSIL", "HSIL", "SCC")), hsil_plus(("background", "cell"))
        ([2, 3], [])
    """
    if set(names) != set(STAGE2_CLASSES):
        return []
    return [names.index(name) for name in STAGE2_CLASSES[2:]]


def positive_members(names: Sequence[str]) -> tuple[str, list[int]] | None:
    """Says which classes are looked for.

    Args:
        names: Class names, in the order of the probabilities.

    Returns:
        'HSIL+' or 'cell' and the positions of its members among the names; None for other classes.
    """
    if severe := hsil_plus(names):
        return "HSIL+", severe
    if set(names) == set(STAGE1_CLASSES):
        return STAGE1_CLASSES[-1], [names.index(STAGE1_CLASSES[-1])]
    return None


def positive_class(predictions: Predictions) -> PositiveClass | None:
    """Turns the classes of a stage into one question.

    Args:
        predictions: Predictions of any classes.

    Returns:
        HSIL+ (HSIL or SCC) of the four Bethesda classes, 'cell' of stage 1, and None for others.
    """
    named = positive_members(predictions.class_names)
    if named is None:
        return None
    name, members = named
    total = predictions.probabilities.sum(axis=1)
    # Rounding may put the share a hair above 1.
    scores = (predictions.probabilities[:, members].sum(axis=1) / total).clip(0, 1)
    return PositiveClass(name, scores, np.isin(predictions.labels, members))
