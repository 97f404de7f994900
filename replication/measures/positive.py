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


def positive_members(names: Sequence[str]) -> tuple[str, list[int]] | None:
    """Says which classes are looked for.

    Args:
        names: Of the classes, in the order of the probabilities.

    Returns:
        'HSIL+' or 'cell' and the positions of its members among the names; None for other classes.
    """
    if set(names) == set(STAGE2_CLASSES):
        name, members = "HSIL+", STAGE2_CLASSES[2:]
    elif set(names) == set(STAGE1_CLASSES):
        name, members = STAGE1_CLASSES[-1], STAGE1_CLASSES[-1:]
    else:
        return None
    return name, [names.index(member) for member in members]


def positive_class(predictions: Predictions) -> PositiveClass | None:
    """Turns the classes of a stage into one question.

    Args:
        predictions: Of any classes.

    Returns:
        HSIL+ (HSIL or SCC) of the four Bethesda classes, 'cell' of stage 1, and None for others.
    """
    found = positive_members(predictions.class_names)
    if found is None:
        return None
    name, columns = found
    total = predictions.probabilities.sum(axis=1)
    # Rounding may put the share a hair above 1.
    scores = (predictions.probabilities[:, columns].sum(axis=1) / total).clip(0, 1)
    return PositiveClass(name, scores, np.isin(predictions.labels, columns))


def hsil_plus_scores(predictions: Predictions) -> np.ndarray:
    """Returns P(HSIL) + P(SCC) of each image, float64 ``[n]``.

    Args:
        predictions: Of the four Bethesda classes.

    Raises:
        ValueError: They are of other classes.
    """
    positive = positive_class(predictions)
    if positive is None or positive.name != "HSIL+":
        raise ValueError(
            f"HSIL+: expected the classes {', '.join(STAGE2_CLASSES)}, "
            f"got {', '.join(predictions.class_names)}"
        )
    return positive.scores
