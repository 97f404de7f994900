"""The figure of the defects' sizes: a dot and its interval each, in points."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from replication.ablation.sizes import Size
from replication.drawing import figures, palette, shown
from replication.measures.names import METRICS

#: Inches; pixels of a PNG are 180 times that, as of the comparison's figures.
_WIDTH, _DPI = 5.2, 180

#: Of each figure its colour and marker.
_MARKS = {
    "accuracy": (palette.BLUE, "o"),
    "balanced_accuracy": (palette.VERMILION, "s"),
    "specificity": (palette.BLACK, "D"),
}


def drawable(sizes: Sequence[Size]) -> list[Size]:
    """Returns the sizes that have a point; a spread over seeds is none with a sign."""
    return [s for s in sizes if s.defect != "D7" and math.isfinite(s.points.value)]


def sizes(drawn: Sequence[Size], form: str = "svg") -> bytes:
    """Draws what each defect does to each figure.

    Args:
        drawn: From `drawable`, at least one.
        form: 'svg' or 'png'.

    Returns:
        The picture. Bars are 95 % intervals; a hollow mark is not told apart from 0.
    """
    height = 1.25 + 0.3 * len(drawn)
    return figures.drawn(height, lambda f: _sizes(f, drawn), form, width=_WIDTH, dpi=_DPI)


def _sizes(figure: Figure, drawn: Sequence[Size]) -> None:
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()
    labels, before = [], ""
    for y, size in enumerate(drawn):
        colour, marker = _MARKS[size.metric]
        points = size.points
        if math.isfinite(points.low):
            axes.plot([100 * points.low, 100 * points.high], [y, y], color=colour, linewidth=1.6)
        face = colour if points.told_from_zero else palette.GROUND
        axes.plot(100 * points.value, y, marker, color=colour, markerfacecolor=face, markersize=6)
        ends = shown.points_interval(points.low, points.high)
        text = f"{shown.points(points.value)}  {ends}"
        axes.text(1.03, y, text, va="center", transform=beside, fontsize=8.5)
        name = f"{size.defect} of {size.part}" + (" (leak)" if "let into" in size.what else "")
        labels.append(name if name != before else "")
        before = name
    axes.axvline(0, color=palette.INK, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(drawn)), labels)
    axes.set_ylim(len(drawn) - 0.45, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(True, axis="x")
    axes.set_xlabel("points: with the defect minus without")
    handles, words = [], []
    for metric in dict.fromkeys(size.metric for size in drawn):
        colour, marker = _MARKS[metric]
        handles.append(Line2D([], [], marker=marker, color=colour, linewidth=1.6))
        words.append(METRICS[metric].words if metric in METRICS else metric)
    if not all(size.points.told_from_zero for size in drawn):
        handles.append(
            Line2D(
                [], [], marker="o", color=palette.GREY, markerfacecolor=palette.GROUND, linewidth=0
            )
        )
        words.append("hollow: not told apart from 0")
    figures.legend(figure, handles, words)
