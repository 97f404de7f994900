"""Abstaining: what a model gains that leaves the images it is least sure of to a person.

The threshold is chosen on the tune images and applied once to the test images.
"""

import dataclasses
import math

import numpy as np

from replication.measures.calibration import one_role
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions
from replication.measures.shares import share

#: Share of the tune images that a model that abstains still answers.
COVERAGE = 0.90

#: Why a protocol without tune images has no threshold.
NO_TUNE = (
    "This protocol has no tune images, and a threshold chosen on the test images would flatter."
)

#: Why there is no interval of the area.
_NO_AURC = "no interval: none that was tried holds for few errors"


@dataclasses.dataclass(frozen=True)
class Abstention:
    """One threshold of the confidence, chosen on the tune images and applied to the test images.

    Attributes:
        target: Coverage of the tune images that it was chosen for.
        threshold: Answered where the highest probability is here or above; NaN where there is none.
        note: How it was chosen, or why there is none, in a sentence.
        tune_coverage: Share of the tune images answered.
        tune_risk: Share of wrong ones among these.
        coverage: Share of the test images answered, by group where groups are known, as all shares.
        risk: Share of wrong ones among the test images answered.
        risk_of_all: Share of wrong ones among all test images.
        aurc: Area under the risk-coverage curve of the test images, without an interval.
    """

    target: float
    threshold: float
    note: str
    tune_coverage: float
    tune_risk: float
    coverage: Estimate
    risk: Estimate
    risk_of_all: Estimate
    aurc: Estimate


def risk_coverage_curve(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error rate among the images answered, for every threshold.

    Images of equal confidence enter together.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks",
    NeurIPS 2017.

    Args:
        predictions: Predictions of one role, at least one image.

    Returns:
        Three float64 ``[m]``, from the surest images to all of them: coverage (0..1, the last is
        1), risk (0..1) and the threshold, one of the images' confidences.
    """
    answered, missed, thresholds = _accumulated(*_confidence(predictions))
    return answered / len(predictions), missed / answered, thresholds


def risk_coverage(
    predictions: Predictions,
    coverage: float = COVERAGE,
    *,
    confidence: float = 0.95,
) -> Abstention:
    """Chooses when to abstain on the tune images, and shows on the test images what it gives.

    The threshold is the highest at which at least that share of the tune images is answered. The
    area under the curve (AURC) is the mean over the test images of the risk among all that are at
    least as sure: the lower the better, and the error rate itself where the confidence tells
    nothing.

    Args:
        predictions: Test images, and tune images where there are any; probabilities are taken as
            they are (`triage.assess` puts the temperature on them first).
        coverage: Share of the tune images to answer, above 0 and up to 1.
        confidence: Level of the intervals, between 0 and 1.

    Returns:
        The threshold and its figures. Without tune images only those of all test images.

    Raises:
        ValueError: There are no test images, or ``coverage`` is not above 0 and up to 1.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: expected a number above 0 and up to 1, got {coverage}")
    test, tune = one_role(predictions.select("test"), "test"), predictions.select("tune")
    threshold, note, tune_coverage, tune_risk = math.nan, NO_TUNE, math.nan, math.nan
    if len(tune):
        covered, risks, thresholds = risk_coverage_curve(tune)
        first = int(np.flatnonzero(covered >= coverage)[0])
        threshold = float(thresholds[first])
        tune_coverage, tune_risk = float(covered[first]), float(risks[first])
        note = (
            f"The threshold is the highest at which at least {100 * coverage:g} % of the "
            f"{len(tune):,} tune images are answered."
        )
    sure, wrong = _confidence(test)
    answered, every = sure >= threshold, np.ones(len(test), bool)
    # Of no threshold nothing is known, not even that no image is answered.
    considered = every if len(tune) else ~every
    shares = {
        "coverage": (answered, considered),
        "risk": (answered & wrong, answered),
        "risk_of_all": (wrong, every),
    }
    estimates = {name: share(*masks, test.groups, confidence) for name, masks in shares.items()}
    reached, risks, _ = risk_coverage_curve(test)
    # Each image weighs the risk among all that are at least as sure.
    area = float((np.diff(reached, prepend=0) * risks).sum())
    return Abstention(
        target=coverage,
        threshold=threshold,
        note=note,
        tune_coverage=tune_coverage,
        tune_risk=tune_risk,
        aurc=Estimate(area, math.nan, math.nan, len(test), _NO_AURC),
        **estimates,
    )


def _confidence(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return p.probabilities.max(axis=1), p.predicted != p.labels


def _accumulated(
    confidence: np.ndarray, wrong: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images answered and errors at each distinct confidence, from the surest on.

    Args:
        confidence: float64 ``[n]``.
        wrong: bool ``[n]``.

    Returns:
        Answered and wrong, int64 ``[m]`` each, and the confidences, float64 ``[m]``.
    """
    order = np.argsort(-confidence, kind="stable")
    # The last position of each distinct confidence in descending order.
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    return ends + 1, np.cumsum(wrong[order])[ends], confidence[order][ends]
