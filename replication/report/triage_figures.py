"""Figures of calibration and triage: reliability, ROC with operating points, risk and coverage."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from sklearn import metrics

from replication.drawing import figures, palette
from replication.measures.abstention import Abstention, risk_coverage_curve
from replication.measures.calibration import Scores
from replication.measures.intervals import Estimate
from replication.measures.positive import positive_class
from replication.measures.predictions import Predictions
from replication.measures.triage import OperatingPoints

_BEFORE, _AFTER, _CHOSEN = palette.VERMILION, palette.BLUE, palette.VERMILION

#: Of the intervals.
_BAR: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.6}

#: Marks of the operating points; the first two hold the specificity fixed.
_MARKS = ("v", "^", "s", "D", "o", "P")


def reliability_diagram(before: Scores, after: Scores | None, score: str, share: str) -> bytes:
    """Draws the share of hits over the score, and the images of each bin below.

    Args:
        before: With the probabilities as the model gave them.
        after: With the temperature; None without one.
        score: What the score is, for the horizontal axis.
        share: What a hit is, for the vertical axis.

    Returns:
        SVG. Bars are 95 % intervals, by group where groups are known.
    """
    return figures.drawn(
        figures.HEIGHT,
        lambda figure: _reliability_diagram(figure, before, after, score, share),
    )


def _reliability_diagram(
    figure: Figure, before: Scores, after: Scores | None, score: str, share: str
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    (line,) = upper.plot([0, 1], [0, 1], color=palette.GREY, linewidth=0.9)
    handles, labels = [line], ["calibrated"]
    # Side by side in a bin, so that neither hides the other.
    series = [
        ("as the model gave them", before, _BEFORE, "o", palette.GROUND, -0.22 if after else 0)
    ]
    if after:
        series.append(("with the temperature", after, _AFTER, "s", _AFTER, 0.22))
    for label, scores, colour, mark, face, shift in series:
        style: dict[str, Any] = {
            "color": colour,
            "marker": mark,
            "mfc": face,
            "ms": 4.5,
            "linewidth": 0.8,
        }
        x, y, low, high = zip(
            *((one.confidence, one.accuracy, one.low, one.high) for one in scores.bins), strict=True
        )
        upper.vlines(x, low, high, color=colour, **_BAR)
        upper.plot(x, y, **style)
        handles.append(Line2D([], [], **style))
        labels.append(f"{label}: ECE {scores.ece.value:.3f}")
        width = scores.bins[0].upper - scores.bins[0].lower
        lower.bar(
            [(one.lower + one.upper) / 2 + shift * width for one in scores.bins],
            [one.count for one in scores.bins],
            width=(0.4 if after else 0.8) * width,
            color=face,
            edgecolor=colour,
            linewidth=0.9,
        )
    # Nearly all images may lie in one bin, beside which one of three would not be seen.
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.6)
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    lower.yaxis.set_minor_formatter(NullFormatter())
    lower.set(xlabel=score, ylabel="test images\n(log scale)")
    upper.set(ylabel=share, xlim=(-0.015, 1.015), ylim=(-0.03, 1.03))
    for axes in (upper, lower):
        axes.grid(True)
        axes.xaxis.set_major_formatter(figures.percent_tick)
    upper.yaxis.set_major_formatter(figures.percent_tick)
    figures.legend(figure, handles, labels)


def operating_points(predictions: Predictions, points: OperatingPoints) -> bytes:
    """Draws the ROC curve of the test images, and where the frozen thresholds lie on it.

    Args:
        predictions: On the scale of the thresholds.
        points: What was chosen on the tune images.

    Returns:
        SVG. Bars are 95 % intervals, by group where groups are known.
    """
    return figures.drawn(
        figures.HEIGHT, lambda figure: _operating_points(figure, predictions, points)
    )


def _operating_points(figure: Figure, predictions: Predictions, points: OperatingPoints) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=palette.GREY, linewidth=0.7)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
    axes.grid(True)
    positive = positive_class(predictions.select("test"))
    if positive is None or not math.isfinite(points.roc_auc.value):
        figures.message(axes, "not defined: one class only")
        return
    false, true, _ = metrics.roc_curve(positive.truth, positive.scores)
    (line,) = axes.plot(false, true, color=_AFTER, linewidth=1.7)
    handles, labels = [line], [f"{points.positive}, area {points.roc_auc.value:.3f}"]
    for number, point in enumerate(points.points):
        if not math.isfinite(point.threshold):
            continue
        sensitivity, specificity = point.sensitivity, point.specificity
        colour = _CHOSEN if point.fixed == "specificity" else palette.INK
        x, y = 1 - specificity.value, sensitivity.value
        ends = 1 - specificity.high, 1 - specificity.low
        _bars(axes, x, y, colour, ends, _ends(sensitivity))
        mark = _mark(colour, _MARKS[number % len(_MARKS)])
        axes.plot([x], [y], zorder=4, clip_on=False, **mark)
        handles.append(Line2D([], [], **mark))
        labels.append(f"{point.fixed} {100 * point.target:g} % on tune images")
    figures.legend(figure, handles, labels, handlelength=1.8)


def risk_coverage(predictions: Predictions, abstention: Abstention) -> bytes:
    """Draws the error rate among the images answered over their share.

    Args:
        predictions: On the scale of the threshold.
        abstention: What was chosen on the tune images.

    Returns:
        SVG. Bars are 95 % intervals, by group where groups are known.
    """
    return figures.drawn(
        figures.HEIGHT, lambda figure: _risk_coverage(figure, predictions, abstention)
    )


def _risk_coverage(figure: Figure, predictions: Predictions, abstention: Abstention) -> None:
    axes = figure.subplots()
    handles, labels = [], []
    tops = [0.02]
    roles = (("tune", palette.GREY, (0, (4, 1.2)), 1.1), ("test", _AFTER, "-", 1.7))
    for role, colour, dashes, width in roles:
        chosen = predictions.select(role)
        if not len(chosen):
            continue
        answered, wrong, _ = risk_coverage_curve(chosen)
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": width}
        axes.plot(answered, wrong, drawstyle="steps-post", **style)
        handles.append(Line2D([], [], **style))
        labels.append(f"{role} images")
        # One wrong image among the first few is chance, and would press all else onto the axis.
        tops.append(float(wrong[answered >= min(0.1, answered[-1])].max()))
    labels[-1] += f", area (AURC) {abstention.aurc.value:.4f}"
    if math.isfinite(abstention.threshold) and abstention.risk.count:
        coverage, risk = abstention.coverage, abstention.risk
        _bars(axes, coverage.value, risk.value, _CHOSEN, _ends(coverage), _ends(risk))
        mark = _mark(_CHOSEN, "o")
        axes.plot([coverage.value], [risk.value], zorder=4, clip_on=False, **mark)
        handles.append(Line2D([], [], **mark))
        labels.append(f"threshold {abstention.threshold:.3g}, chosen on the tune images")
        tops.append(risk.high)
    axes.set(xlabel="images answered (coverage)", ylabel="wrong among these (risk)")
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.02 * max(tops), 1.05 * max(tops)))
    axes.xaxis.set_major_formatter(figures.percent_tick)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid(True)
    figures.legend(figure, handles, labels)


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def _mark(colour: str, marker: str) -> dict[str, Any]:
    style = {"mfc": palette.GROUND, "ms": 6, "mew": 1.3, "linestyle": ""}
    return {"color": colour, "marker": marker, **style}


def _bars(
    axes: Axes,
    x: float,
    y: float,
    colour: str,
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
) -> None:
    """Draws both intervals of a point."""
    axes.hlines(y, *x_ends, color=colour, **_BAR)
    axes.vlines(x, *y_ends, color=colour, **_BAR)
