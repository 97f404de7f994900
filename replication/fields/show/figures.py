"""Figures of the evaluation of whole fields: FROC, precision and recall, and what is read right."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from replication.drawing import figures, palette
from replication.fields.judge import results as field_results
from replication.fields.judge.results import Evaluation

_CURVE, _CHOSEN, _FAINT = palette.BLUE, palette.VERMILION, palette.FAINT
# Keywords of matplotlib, which differ in type.
_LINE: dict[str, Any] = {"color": _CURVE, "linewidth": 1.7}
_BAR: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.8}
_MARK: dict[str, Any] = dict(
    color=_CHOSEN, marker="o", mfc=palette.GROUND, ms=6, mew=1.3, linestyle=""
)
_CEILING: dict[str, Any] = {"color": palette.GREY, "linestyle": (0, (4, 2)), "linewidth": 0.9}

#: File names of `pictures`, without their ending.
NAMES = ("froc", "fields_precision_recall", "end_to_end")

#: Fewest false positives per field that the FROC curve shows.
_FEWEST = 0.1
#: Of a label below an axis, letters a line.
_LETTERS_A_LINE = 64


def pictures(evaluation: Evaluation, form: str = "svg") -> dict[str, bytes]:
    """Draws every figure that the evaluation allows.

    Args:
        evaluation: Of annotated fields.
        form: "svg" or "png".

    Returns:
        By name, of `NAMES`.
    """
    drawn = {
        "froc": figures.drawn(figures.HEIGHT, lambda figure: _froc(figure, evaluation), form),
        "fields_precision_recall": figures.drawn(
            figures.HEIGHT, lambda figure: _precision_recall(figure, evaluation), form
        ),
    }
    if evaluation.confusion is not None:
        rows = sum(count > 0 for count in evaluation.annotated.values()) + 1
        drawn["end_to_end"] = figures.drawn(
            1.4 + 0.34 * rows, lambda figure: _end_to_end(figure, evaluation), form
        )
    return drawn


def _froc(figure: Figure, evaluation: Evaluation) -> None:
    """Recall over false positives per field, for all thresholds."""
    axes = figure.subplots()
    axes.set(xlabel="false positives per field", ylabel="nuclei found (recall)")
    curve = evaluation.curve
    if curve is None or not curve.thresholds:
        figures.message(axes, "not defined: no nucleus or no detection")
        return
    lowest = max(_FEWEST, 0.5 / evaluation.fields)
    highest = max(2 * lowest, 1.3 * curve.false_positives[-1])
    handles: dict[str, Line2D | Patch] = {}
    if np.isfinite(curve.band_low).any():
        axes.fill_between(
            curve.band_false_positives,
            curve.band_low,
            curve.band_high,
            color=_CURVE,
            alpha=0.16,
            linewidth=0,
        )
        handles["95 % interval over fields"] = Patch(color=_CURVE, alpha=0.16, linewidth=0)
    # A logarithmic axis has no 0.
    places = np.maximum([0.0, *curve.false_positives], lowest / 2)
    axes.plot(places, [0.0, *curve.recall], drawstyle="steps-post", **_LINE)
    handles = {"all thresholds, matched by score": Line2D([], [], **_LINE), **handles}
    false_positives, recall = (
        evaluation.figure(name) for name in ("false_positives_per_field", "recall")
    )
    if false_positives.value >= lowest:
        _point(axes, false_positives, recall)
        handles[f"threshold {evaluation.threshold:g}, best matching"] = Line2D([], [], **_MARK)
    reachable = evaluation.figure("recall_reachable").count / evaluation.nuclei
    axes.axhline(reachable, **_CEILING)
    handles["nuclei that an ROI can be centred on"] = Line2D([], [], **_CEILING)
    axes.set(xscale="log", xlim=(lowest, highest), ylim=(-0.015, 1.015))
    ticks = 2.0 ** np.arange(math.ceil(math.log2(lowest)), math.floor(math.log2(highest)) + 1)
    axes.set_xticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _finish(figure, axes, evaluation, handles)


def _precision_recall(figure: Figure, evaluation: Evaluation) -> None:
    """Precision over recall of stage 1, for all thresholds."""
    axes = figure.subplots()
    axes.set(xlabel="nuclei found (recall)", ylabel="kept ROIs that are a nucleus (precision)")
    curve = evaluation.curve
    if curve is None or not curve.thresholds:
        figures.message(axes, "not defined: no nucleus or no detection")
        return
    axes.plot(
        [0.0, *curve.recall],
        [curve.precision[0], *curve.precision],
        drawstyle="steps-pre",
        **_LINE,
    )
    area = evaluation.figure("average_precision")
    handles = {f"all thresholds, area {area}": Line2D([], [], **_LINE)}
    recall, precision = evaluation.figure("recall"), evaluation.figure("precision")
    if math.isfinite(precision.value):
        _point(axes, recall, precision)
        handles[f"threshold {evaluation.threshold:g}, best matching"] = Line2D([], [], **_MARK)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
    axes.xaxis.set_major_formatter(figures.percent_tick)
    _finish(figure, axes, evaluation, handles)


def _end_to_end(figure: Figure, evaluation: Evaluation) -> None:
    """For each label, how many nuclei were found and how many of them named right."""
    axes = figure.subplots()
    matrix = dict(zip(evaluation.rows, np.array(evaluation.confusion), strict=True))
    looked_for, names = evaluation.looked_for, evaluation.columns[:-1]
    named = list(names)
    if looked_for is not None:
        matrix[looked_for] = sum(matrix[name] for name in evaluation.classes.positive)
        named.append(looked_for)
    others = [name for name in evaluation.rows if name not in names]
    counts = {label: matrix[label] for label in (*named, *others) if matrix[label].sum()}
    missed = evaluation.columns.index(field_results.NOT_FOUND)
    for place, row in enumerate(counts.values()):
        axes.barh(place, 1 - row[missed] / row.sum(), height=0.68, color=_FAINT)
    for place, label in enumerate(counts):
        if label not in named:
            continue
        right = evaluation.figure(f"sensitivity {label}")
        axes.barh(place, right.value, height=0.68, color=_CURVE)
        axes.hlines(place, right.low, right.high, color=palette.INK, linewidth=1.2)
        axes.plot([right.low, right.high], [place] * 2, "|", color=palette.INK, ms=6, mew=1.2)
    axes.set_yticks(
        range(len(counts)), [f"{label}  n = {row.sum():,}" for label, row in counts.items()]
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(
        xlim=(0, 1.005),
        xlabel="annotated nuclei"
        + (
            "\n"
            + textwrap.fill(
                f"{looked_for} specificity among the other nuclei found: "
                f"{evaluation.figure(f'specificity {looked_for}')}",
                _LETTERS_A_LINE,
            )
            if looked_for
            else ""
        ),
    )
    axes.xaxis.set_major_formatter(figures.percent_tick)
    axes.grid(True, axis="x")
    interval = Line2D([], [], marker="|", ms=6, mew=1.2, linewidth=1.2, color=palette.INK)
    handles: dict[str, Line2D | Patch] = {
        "found and named right": Patch(color=_CURVE),
        "found": Patch(color=_FAINT),
        "95 % interval": interval,
    }
    if evaluation.fields == 1:
        del handles["95 % interval"]
    figures.legend(figure, handles.values(), handles.keys())


def _point(axes: Axes, x: field_results.Figure, y: field_results.Figure) -> None:
    """Draws the figures at the threshold with their intervals."""
    axes.hlines(y.value, x.low, x.high, color=_CHOSEN, **_BAR)
    axes.vlines(x.value, y.low, y.high, color=_CHOSEN, **_BAR)
    axes.plot([x.value], [y.value], zorder=4, clip_on=False, **_MARK)


def _finish(
    figure: Figure, axes: Axes, evaluation: Evaluation, handles: Mapping[str, Line2D | Patch]
) -> None:
    axes.yaxis.set_major_formatter(figures.percent_tick)
    axes.grid(True)
    if not evaluation.complete:
        axes.set_title("not reliable: not every cell is annotated", weight="normal")
    figures.legend(figure, handles.values(), handles.keys())
