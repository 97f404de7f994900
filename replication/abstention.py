"""Abstaining: what a model gains that leaves the images it is least sure of to a person.

The threshold is chosen on the tune images and applied once to the test images.
"""

import dataclasses
import math

import numpy as np

from replication.calibration import one_role
from replication.intervals import Estimate, Interval, percentile_bootstrap, resampling_units, wilson
from replication.predictions import Predictions

#: Share of the tune images that a model that abstains still answers.
COVERAGE = 0.90

#: Why a protocol without tune images has no threshold.
NO_TUNE = (
    "This protocol has no tune images, and a threshold chosen on the test images would flatter."
)


@dataclasses.dataclass(frozen=True)
class Abstention:
    """One threshold of the confidence, chosen on the tune images and applied to the test images.

    Attributes:
        target: Coverage of the tune images that it was chosen for.
        threshold: Answered where the highest probability is here or above; NaN where there is none.
        note: How it was chosen, or why there is none, in a sentence.
        tune_coverage: Share of the tune images answered.
        tune_risk: Share of wrong ones among these.
        coverage: Share of the test images answered, with Wilson's interval.
        coverage_by_group: The same with the group bootstrap, stretched to hold Wilson's interval;
            None where not every group is known. Quote it where it is there.
        risk: Share of wrong ones among the test images answered.
        risk_by_group: Likewise by group.
        risk_of_all: Share of wrong ones among all test images.
        risk_of_all_by_group: Likewise by group.
        aurc: Area under the risk-coverage curve of the test images, with a bootstrap interval.
    """

    target: float
    threshold: float
    note: str
    tune_coverage: float
    tune_risk: float
    coverage: Estimate
    coverage_by_group: Estimate | None
    risk: Estimate
    risk_by_group: Estimate | None
    risk_of_all: Estimate
    risk_of_all_by_group: Estimate | None
    aurc: Estimate


def risk_coverage_curve(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error rate among the images answered, for every threshold.

    Images of equal confidence enter together.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks",
    NeurIPS 2017.

    Args:
        predictions: Of one role, at least one image.

    Returns:
        Three float64 ``[m]``, from the surest images to all of them: coverage (0..1, the last is
        1), risk (0..1) and the threshold, one of the images' confidences.
    """
    confidence, wrong = _confidence(predictions)
    answered, missed, _, ends = _accumulated(confidence, wrong, np.ones((1, len(confidence))))
    thresholds = np.sort(confidence)[::-1][ends]
    return answered[0] / len(confidence), missed[0] / answered[0], thresholds


def risk_coverage(
    predictions: Predictions,
    coverage: float = COVERAGE,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
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
        confidence: Of the intervals.
        resamples: Of the bootstrap, over groups where all are known.
        seed: Of the bootstrap.

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

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        figures = {name: weighted_share(weights, *masks) for name, masks in shares.items()}
        *_, areas, _ = _accumulated(sure, wrong, weights)
        return {**figures, "aurc": areas}

    intervals = percentile_bootstrap(
        statistic, test.groups, confidence=confidence, resamples=resamples, seed=seed
    )
    estimates: dict[str, Estimate | None] = {}
    for name, masks in shares.items():
        estimates[name], estimates[f"{name}_by_group"] = proportion(
            *masks, test.groups, intervals[name], confidence
        )
    area, found = float(statistic(np.ones((1, len(test))))["aurc"][0]), intervals["aurc"]
    return Abstention(
        target=coverage,
        threshold=threshold,
        note=note,
        tune_coverage=tune_coverage,
        tune_risk=tune_risk,
        aurc=Estimate(area, found.low, found.high, len(test), found.method),
        **estimates,
    )


def weighted_share(weights: np.ndarray, hits: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Share of hits in many resamples.

    Args:
        weights: float64 ``[b, n]``: how often each image was drawn.
        hits: bool ``[n]``; part of ``among``.
        among: bool ``[n]``.

    Returns:
        float64 ``[b]``; NaN where a resample has none of ``among``.
    """
    below = weights @ among
    return np.divide(weights @ hits, below, out=np.full(len(below), math.nan), where=below > 0)


def proportion(
    hits: np.ndarray,
    among: np.ndarray,
    groups: tuple[str, ...],
    bootstrapped: Interval,
    confidence: float = 0.95,
) -> tuple[Estimate, Estimate | None]:
    """A share with both of its intervals.

    Args:
        hits: bool ``[n]``; part of ``among``.
        among: bool ``[n]``.
        groups: Group of each image; '' = unknown.
        bootstrapped: The bootstrap interval of the same share.
        confidence: Of Wilson's interval.

    Returns:
        The share with Wilson's interval, and where every group is known once more with that of the
        group bootstrap, stretched to hold Wilson's: neither few groups nor a perfect score flatter.
    """
    successes, total = int(hits.sum()), int(among.sum())
    if not total:
        nothing = Estimate(math.nan, math.nan, math.nan, 0, "undefined: no image to count")
        return nothing, nothing if resampling_units(groups)[1] == "groups" else None
    value, (low, high) = successes / total, wilson(successes, total, confidence)
    units, kind = resampling_units(groups)
    if kind == "images":
        return Estimate(value, low, high, total, "Wilson"), None
    independent = f"Wilson, as if the images of {units.max() + 1} groups were independent"
    return Estimate(value, low, high, total, independent), Estimate(
        value,
        float(np.fmin(low, bootstrapped.low)),
        float(np.fmax(high, bootstrapped.high)),
        total,
        f"{bootstrapped.method}; stretched to hold Wilson's interval",
    )


def _confidence(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return p.probabilities.max(axis=1), p.predicted != p.labels


def _accumulated(
    confidence: np.ndarray, wrong: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images answered and errors at each distinct confidence, from the surest on, and the AURC.

    Returns:
        Answered ``[b, m]``, wrong ``[b, m]``, area ``[b]``, and the last position of each distinct
        confidence in descending order, ``[m]``.
    """
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    drawn = weights[:, order]
    answered = np.cumsum(drawn, axis=1)[:, ends]
    missed = np.cumsum(drawn * wrong[order], axis=1)[:, ends]
    # Before the first image drawn there is no risk, and no image to weigh it by.
    risk = np.divide(missed, answered, out=np.zeros_like(missed), where=answered > 0)
    entered = np.diff(answered, axis=1, prepend=0)
    return answered, missed, (entered * risk).sum(axis=1) / answered[:, -1], ends
