"""What the report says of calibration and triage: sentences, tables and figures of one model."""

import math
from typing import Any

from replication.drawing.shown import estimate, methods, svg
from replication.measures import triage
from replication.measures.abstention import Abstention
from replication.measures.calibration import Calibration, Scores
from replication.measures.predictions import Predictions
from replication.report import triage_figures
from tfds_pap.classes import Classes

#: What is shown where there is no threshold, or no image to count.
_NONE = "not defined"


def section(predictions: Predictions, prevalence: float | None = None) -> dict[str, Any]:
    """Prepares the section for the template.

    Args:
        predictions: A whole predictions file.
        prevalence: Of HSIL+ where the model is to be used, between 0 and 1.

    Returns:
        'temperature' (text; '' without one), 'note', 'binning', 'measures' (lines of the table of
        calibration), 'methods' (how the intervals were made), 'points' (of the operating points;
        None for classes without a positive one), 'abstaining', and 'figures' (dicts of 'uri', 'alt'
        and 'caption').

    Raises:
        ValueError: There are no test images, or the prevalence is not between 0 and 1.
    """
    assessed = triage.assessment(predictions, prevalence)
    calibration = assessed.calibration
    return {
        "temperature": (
            "" if calibration.temperature is None else f"{calibration.temperature:.3g}"
        ),
        "note": calibration.note,
        "binning": calibration.binning,
        "measures": _measures(calibration, predictions.classes),
        "methods": _methods(assessed),
        "points": _points(assessed.operating_points),
        "abstaining": _abstaining(assessed.risk_coverage),
        "figures": _figures(assessed, predictions.classes.positive_name),
    }


def _measures(calibration: Calibration, classes: Classes) -> list[dict[str, Any]]:
    positive, members = classes.positive_name, " or ".join(classes.positive)
    hsil_plus = calibration.hsil_plus_before, calibration.hsil_plus_after
    top_label = calibration.before, calibration.after
    lines = [
        _measure("ECE of the named class", "confidence against images right", "ece", *top_label),
        _measure(
            f"ECE of {positive}",
            f"probability of {members} against the truth",
            "ece",
            *hsil_plus,
        ),
        _measure("Brier score", "all classes, 0 (perfect) to 2", "brier", *top_label),
        _measure(f"Brier score of {positive}", "0 (perfect) to 1", "brier", *hsil_plus),
        _measure("log loss", "0 is perfect", "log_loss", *top_label),
    ]
    return [line for line in lines if line]


def _measure(
    name: str, what: str, key: str, before: Scores | None, after: Scores | None
) -> dict[str, Any] | None:
    if before is None:
        return None
    cells = []
    for scores in (before, after):
        if scores is None:
            continue
        chance = estimate(scores.ece_if_calibrated, percent=False) if key == "ece" else None
        cells.append({"shown": estimate(getattr(scores, key), percent=False), "chance": chance})
    return {"name": name, "what": what, "cells": cells}


def _points(chosen: triage.OperatingPoints | None) -> dict[str, Any] | None:
    if chosen is None:
        return None
    return {
        "positive": chosen.positive,
        "note": chosen.note,
        "rule": chosen.rule,
        "counts": (
            f"{chosen.tune_positive:,} of {chosen.tune_images:,} tune images and "
            f"{chosen.test_positive:,} of {chosen.test_images:,} test images are {chosen.positive}."
        ),
        "prevalence": "" if chosen.prevalence is None else f"{100 * chosen.prevalence:g}\u00a0%",
        "prevalence_note": chosen.prevalence_note,
        "lines": [
            {
                "fixed": f"{point.fixed.capitalize()} {100 * point.target:g}\u00a0%",
                "on_tune": _on_tune(point),
                "threshold": f"{point.threshold:.4f}" if not point.reason else _NONE,
                "figures": {
                    name: estimate(figure, missing=_NONE)
                    for name, figure in (
                        ("Sensitivity", point.sensitivity),
                        ("Specificity", point.specificity),
                        ("PPV", point.ppv),
                        ("NPV", point.npv),
                    )
                    if figure is not None
                },
            }
            for point in chosen.points
        ],
    }


def _on_tune(point: triage.OperatingPoint) -> str:
    if point.reason:
        return point.reason
    return (
        f"on tune: sensitivity {100 * point.tune_sensitivity:.1f}\u00a0%, "
        f"specificity {100 * point.tune_specificity:.1f}\u00a0%"
    )


def _methods(assessed: triage.Assessment) -> dict[str, str]:
    before, abstaining = assessed.calibration.before, assessed.risk_coverage
    named = {
        "ECE": before.ece,
        "chance alone": before.ece_if_calibrated,
        "Brier score and log loss": before.brier,
    }
    points = assessed.operating_points.points if assessed.operating_points else ()
    for point in points:
        named["sensitivity and specificity"] = point.sensitivity
        if point.ppv is not None:
            named["PPV and NPV"] = point.ppv
    named["abstaining"] = abstaining.risk_of_all
    named["AURC"] = abstaining.aurc
    return methods({name: figure.method for name, figure in named.items()})


def _abstaining(abstention: Abstention) -> dict[str, Any]:
    return {
        "threshold": "" if math.isnan(abstention.threshold) else f"{abstention.threshold:.4f}",
        "note": abstention.note,
        "coverage": estimate(abstention.coverage, missing=_NONE),
        "risk": estimate(abstention.risk, missing=_NONE),
        "risk_of_all": estimate(abstention.risk_of_all, missing=_NONE),
        "aurc": estimate(abstention.aurc, percent=False),
    }


def _figures(assessed: triage.Assessment, positive: str) -> list[dict[str, str]]:
    calibration, points = assessed.calibration, assessed.operating_points
    scaled = calibration.after is not None
    before_after = " before and after the temperature" if scaled else ""
    frozen = not math.isnan(assessed.risk_coverage.threshold)
    pictures = [
        {
            "uri": svg(
                triage_figures.reliability_diagram(
                    calibration.before,
                    calibration.after,
                    "confidence in the named class",
                    "images named right",
                )
            ),
            "alt": f"Reliability diagram of the named class{before_after}",
            "caption": f"Reliability of the named class{before_after}. On the grey line confidence "
            "is what it says; below it the model is too sure. Bars are 95 % "
            "intervals, by group where groups are known.",
        }
    ]
    if calibration.hsil_plus_before:
        pictures.append(
            {
                "uri": svg(
                    triage_figures.reliability_diagram(
                        calibration.hsil_plus_before,
                        calibration.hsil_plus_after,
                        f"probability of {positive}",
                        f"images that are {positive}",
                    )
                ),
                "alt": f"Reliability diagram of {positive}{before_after}",
                "caption": f"Reliability of the probability of {positive}{before_after}. Below the "
                f"grey line {positive} is called more probable than it is.",
            }
        )
    if points and points.points:
        pictures.append(
            {
                "uri": svg(triage_figures.operating_points(assessed.scaled, points)),
                "alt": f"ROC curve of {points.positive} on the test images",
                "caption": f"ROC curve of {points.positive} against the rest, on the test images. "
                "Marks are the thresholds frozen on the tune images.",
            }
        )
    ringed = " The ring is the threshold frozen on the tune images." if frozen else ""
    pictures.append(
        {
            "uri": svg(triage_figures.risk_coverage(assessed.scaled, assessed.risk_coverage)),
            "alt": "Risk-coverage curve",
            "caption": "Risk and coverage: how often the model is wrong where it answers only the "
            f"images that it is surest of.{ringed}",
        }
    )
    return pictures
