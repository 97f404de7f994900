"""Triage: sensitivity at a fixed specificity, the reverse, and everything beside it in one place.

Every threshold is chosen on the tune images and applied once to the test images. Where there are no
tune images there is no threshold either.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special
from sklearn import metrics

from replication.measures import areas, shares
from replication.measures.abstention import NO_TUNE, Abstention, risk_coverage
from replication.measures.calibration import Calibration, apply_temperature, calibrate, one_role
from replication.measures.intervals import Estimate
from replication.measures.positive import PositiveClass, positive_class
from replication.measures.predictions import Predictions, jsonable

#: Specificities, and sensitivities, that are held fixed.
TARGETS = (0.90, 0.95)

_RULE = (
    "An image is called positive where its score is at the threshold or above. Specificity fixed: "
    "the lowest score of a tune image below which at least that share of the negative tune images "
    "lies. Sensitivity fixed: the highest score at which at least that share of the positive tune "
    "images is called positive. Equal scores fall on the same side. The intervals hold for this "
    "threshold, and leave out that other tune images would have given another."
)


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """One threshold, chosen on the tune images and applied to the test images.

    Attributes:
        fixed: 'specificity' or 'sensitivity': what was held fixed on the tune images.
        target: At which value, 0..1.
        threshold: Called positive from here up; NaN where there is none.
        reason: Why there is none; '' otherwise.
        tune_sensitivity: On the tune images; NaN without a threshold.
        tune_specificity: On the tune images; NaN without a threshold.
        sensitivity: On the test images, by group where groups are known.
        specificity: Likewise.
        ppv: Positive predictive value at the prevalence given; None where none was given.
        npv: Negative predictive value at the prevalence given; None where none was given.
    """

    fixed: str
    target: float
    threshold: float
    reason: str
    tune_sensitivity: float
    tune_specificity: float
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate | None
    npv: Estimate | None


@dataclasses.dataclass(frozen=True)
class OperatingPoints:
    """Operating points of one positive class.

    Attributes:
        positive: 'HSIL+', 'cell', or what the classes declare.
        rule: How a threshold is chosen, in words.
        note: Why there are no points; '' otherwise.
        tune_images: Number of tune images.
        tune_positive: Of these, positive ones.
        test_images: Number of test images.
        test_positive: Of these, positive ones.
        prevalence: Where PPV and NPV hold; None where it was not given.
        prevalence_note: What they are computed from, or why they are not.
        roc_auc: Area under the ROC curve of the test images, with an interval.
        points: The operating points; none without tune images.
    """

    positive: str
    rule: str
    note: str
    tune_images: int
    tune_positive: int
    test_images: int
    test_positive: int
    prevalence: float | None
    prevalence_note: str
    roc_auc: Estimate
    points: tuple[OperatingPoint, ...]


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Calibration and triage of one model.

    Attributes:
        calibration: Of the probabilities as the model gave them, and with the temperature.
        scaled: All predictions with the temperature, or as they were where there is none. The
            thresholds are on this scale.
        operating_points: None for other classes than those of stage 1 and stage 2.
        risk_coverage: What abstaining gives.
    """

    calibration: Calibration
    scaled: Predictions
    operating_points: OperatingPoints | None
    risk_coverage: Abstention


def assess(
    predictions: Predictions, prevalence: float | None = None, confidence: float = 0.95
) -> dict[str, Any]:
    """Everything of `assessment`, ready for JSON.

    Args:
        predictions: A whole predictions file.
        prevalence: Of HSIL+ where the model is to be used, between 0 and 1.
        confidence: Level of the intervals, between 0 and 1.

    Returns:
        'calibration', 'operating_points' (None for other classes than those of stage 1 and 2) and
        'risk_coverage': the fields of `Calibration`, `OperatingPoints` and `Abstention`. What is
        not defined is None.

    Raises:
        ValueError: There are no test images, or the prevalence is not between 0 and 1.
    """
    assessed = assessment(predictions, prevalence, confidence=confidence)
    return jsonable(
        {
            "calibration": assessed.calibration,
            "operating_points": assessed.operating_points,
            "risk_coverage": assessed.risk_coverage,
        }
    )


def assessment(
    predictions: Predictions, prevalence: float | None = None, confidence: float = 0.95
) -> Assessment:
    """Fits the temperature, puts it on all probabilities, and then chooses every threshold.

    Args:
        predictions: A whole predictions file: test images, and tune images where there are any.
        prevalence: Of HSIL+ where the model is to be used, between 0 and 1. It says nothing of
            the share of cells among regions, so that stage 1 never gets it.
        confidence: Level of the intervals, between 0 and 1.

    Returns:
        All of it.

    Raises:
        ValueError: There are no test images, or the prevalence is not between 0 and 1.
    """
    _check_prevalence(prevalence)
    calibration = calibrate(predictions, confidence=confidence)
    scaled = predictions
    if calibration.temperature is not None:
        scaled = apply_temperature(predictions, calibration.temperature)
    return Assessment(
        calibration=calibration,
        scaled=scaled,
        operating_points=operating_points(
            scaled, prevalence if predictions.classes.severe else None, confidence=confidence
        ),
        risk_coverage=risk_coverage(scaled, confidence=confidence),
    )


def predictive_values(
    sensitivity: Any, specificity: Any, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative predictive value, by Bayes' rule.

    Args:
        sensitivity: 0..1, a number or an array.
        specificity: 0..1, a number or an array.
        prevalence: Share of the positive condition where the test is to be used, between 0 and 1.

    Returns:
        PPV and NPV, float64; NaN where nothing is called positive, or nothing negative.

    Raises:
        ValueError: The prevalence is not between 0 and 1.

    Example:
        >>> ppv, npv = predictive_values(0.9, 0.9, prevalence=0.01)
        >>> f"{ppv:.3f} {npv:.4f}"
        '0.083 0.9989'
    """
    _check_prevalence(prevalence)
    sensitivity, specificity = np.asarray(sensitivity, float), np.asarray(specificity, float)
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    spared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    with np.errstate(invalid="ignore"):
        return true / (true + false), spared / (spared + missed)


def choose_threshold(scores: np.ndarray, truth: np.ndarray, fixed: str, target: float) -> float:
    """Chooses the threshold of an operating point.

    Args:
        scores: Score of each tune image, float64 ``[n]``.
        truth: Whether each is positive, bool ``[n]``; both kinds are there.
        fixed: 'specificity' or 'sensitivity'.
        target: The share that is to be reached, 0..1.

    Returns:
        The best of the images' own scores: the lowest that reaches the specificity, or the highest
        that reaches the sensitivity. NaN where not even the highest score reaches the specificity.

    Raises:
        ValueError: ``fixed`` is neither of the two.

    Example:
        >>> scores, truth = np.array([0.1, 0.2, 0.6, 0.7]), np.array([False, False, True, True])
        >>> choose_threshold(scores, truth, "specificity", 1)
        0.6
        >>> choose_threshold(scores, truth, "sensitivity", 0.5)
        0.7
    """
    if fixed not in ("specificity", "sensitivity"):
        raise ValueError(f"fixed: expected 'specificity' or 'sensitivity', got {fixed!r}")
    thresholds = np.unique(scores)
    kind = np.sort(scores[truth if fixed == "sensitivity" else ~truth])
    below = np.searchsorted(kind, thresholds, side="left")
    if fixed == "sensitivity":
        # The lowest score calls every image positive, so that one is always found.
        return float(thresholds[(len(kind) - below) / len(kind) >= target][-1])
    reached = thresholds[below / len(kind) >= target]
    return float(reached[0]) if len(reached) else math.nan


def operating_points(
    predictions: Predictions,
    prevalence: float | None = None,
    *,
    targets: Sequence[float] = TARGETS,
    confidence: float = 0.95,
) -> OperatingPoints | None:
    """Sensitivity at a fixed specificity, and the reverse.

    Args:
        predictions: Test images, and tune images where there are any; probabilities are taken as
            they are (`assess` puts the temperature on them first).
        prevalence: Of the positive class where the model is to be used, between 0 and 1. The share
            among the images is no prevalence and is never used as one.
        targets: Specificities, and sensitivities, that are held fixed.
        confidence: Level of the intervals, between 0 and 1.

    Returns:
        The points: every target as a specificity, then every target as a sensitivity. None for
        classes of which nobody said what is looked for.

    Raises:
        ValueError: There are no test images, or the prevalence is not between 0 and 1.
    """
    _check_prevalence(prevalence)
    test = one_role(predictions.select("test"), "test")
    on_test = positive_class(test)
    if on_test is None:
        return None
    tune = predictions.select("tune")
    on_tune = positive_class(tune) if len(tune) else None
    points = []
    if on_tune:
        points = [
            _point(on_tune, on_test, test.groups, fixed, target, prevalence, confidence)
            for fixed in ("specificity", "sensitivity")
            for target in targets
        ]
    return OperatingPoints(
        positive=on_test.name,
        rule=_RULE,
        note="" if on_tune else NO_TUNE,
        tune_images=len(tune),
        tune_positive=int(on_tune.truth.sum()) if on_tune else 0,
        test_images=len(test),
        test_positive=int(on_test.truth.sum()),
        prevalence=prevalence,
        prevalence_note=_prevalence_note(on_test, prevalence),
        roc_auc=_roc_auc(on_test, test.groups, confidence),
        points=tuple(points),
    )


def _roc_auc(test: PositiveClass, groups: Sequence[str], confidence: float) -> Estimate:
    count = len(test.truth)
    if test.truth.all() or not test.truth.any():
        return Estimate(math.nan, math.nan, math.nan, count, "undefined: images of one class only")
    ends = areas.roc_interval(test.scores[None, None], test.truth[None], groups, confidence)
    area = float(metrics.roc_auc_score(test.truth, test.scores))
    return Estimate(area, ends.low, ends.high, count, ends.method)


def _check_prevalence(prevalence: float | None) -> None:
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence: expected a number between 0 and 1, got {prevalence}")


def _point(
    tune: PositiveClass,
    test: PositiveClass,
    groups: Sequence[str],
    fixed: str,
    target: float,
    prevalence: float | None,
    confidence: float,
) -> OperatingPoint:
    """Chooses a threshold on the tune images and applies it to the test images."""
    threshold, reason = math.nan, ""
    if tune.truth.all() or not tune.truth.any():
        missing = f"not {tune.name}" if tune.truth.all() else tune.name
        reason = f"no tune image is {missing}"
    else:
        threshold = choose_threshold(tune.scores, tune.truth, fixed, target)
        if math.isnan(threshold):
            reason = f"no threshold reaches a specificity of {100 * target:g} % on the tune images"
    tune_sensitivity, tune_specificity = (
        float(hits.sum() / among.sum()) if among.any() else math.nan
        for hits, among in _masks(tune, threshold)
    )
    sensitivity, specificity = (
        shares.share(hits, among, groups, confidence) for hits, among in _masks(test, threshold)
    )
    ppv = npv = None
    if prevalence is not None:
        ppv, npv = (
            _predictive_value(name, sensitivity, specificity, prevalence) for name in ("ppv", "npv")
        )
    return OperatingPoint(
        fixed=fixed,
        target=target,
        threshold=threshold,
        reason=reason,
        tune_sensitivity=tune_sensitivity,
        tune_specificity=tune_specificity,
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=ppv,
        npv=npv,
    )


def _masks(positive: PositiveClass, threshold: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which images sensitivity and specificity count as hits, and among which.

    Returns:
        Two pairs of bool ``[n]``; among none where there is no threshold.
    """
    called, counted = positive.scores >= threshold, not math.isnan(threshold)
    truly, not_truly = positive.truth & counted, ~positive.truth & counted
    return [(called & truly, truly), (~called & not_truly, not_truly)]


def _predictive_value(
    name: str, sensitivity: Estimate, specificity: Estimate, prevalence: float
) -> Estimate:
    """Moves each share to the ends of its interval; the moves of the log odds add up as errors."""
    which = ("ppv", "npv").index(name)

    def at(one: float, other: float) -> float:
        return float(predictive_values(one, other, prevalence)[which])

    value = at(sensitivity.value, specificity.value)
    if not math.isfinite(value):
        why = "sensitivity or specificity is"
        if math.isfinite(sensitivity.value) and math.isfinite(specificity.value):
            why = f"no image is called {'positive' if name == 'ppv' else 'negative'}"
        return Estimate(math.nan, math.nan, math.nan, 0, f"undefined: {why}")
    count = sensitivity.count + specificity.count
    if not (math.isfinite(sensitivity.low) and math.isfinite(specificity.low)):
        why = "no interval, as sensitivity or specificity has none"
        return Estimate(value, math.nan, math.nan, count, why)
    middle, below, above = _log_odds(value), 0.0, 0.0
    for one, other in (
        (sensitivity.value, specificity.low),
        (sensitivity.value, specificity.high),
        (sensitivity.low, specificity.value),
        (sensitivity.high, specificity.value),
    ):
        away = _log_odds(at(one, other)) - middle
        below, above = math.hypot(below, min(away, 0)), math.hypot(above, max(away, 0))
    low, high = (float(special.expit(end)) for end in (middle - below, middle + above))
    method = "ends of sensitivity and specificity, combined"
    return Estimate(value, min(low, value), max(high, value), count, method)


def _log_odds(share: float) -> float:
    """Of 0 and 1 those of the nearest number, as nothing is sure."""
    return float(special.logit(np.clip(share, _SURE, 1 - _SURE)))


#: Nearest to 0 and 1 that a predictive value comes.
_SURE = 1e-12


def _prevalence_note(test: PositiveClass, prevalence: float | None) -> str:
    positives, total = int(test.truth.sum()), len(test.truth)
    share = f"{positives:,} of {total:,} test images ({100 * positives / total:.1f} %)"
    chosen = "a share that whoever filled the folder chose, and no prevalence"
    if prevalence is None:
        return (
            f"PPV and NPV are not given, as no prevalence of {test.name} was. {share} are "
            f"{test.name}: {chosen}."
        )
    return (
        f"PPV and NPV are computed by Bayes' rule at a prevalence of {100 * prevalence:g} %, as "
        f"given. {share} are {test.name}: {chosen}."
    )
