"""What the figures of a search share: colours, markers, scale, legend."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune.search.trials import Search, Trial
from replication.drawing import figures, palette
from replication.measures import names

#: Figures of a trial, by their names without "val_".
METRICS = ("accuracy", "macro_f1", "hsil_plus_sensitivity", "hsil_plus_specificity", "loss")

TRIAL, GREEN, GREY, INK = palette.BLUE, palette.GREEN, palette.GREY, palette.INK

#: Hollow, so that the star of the best found is seen in it where they are one.
PAPER: dict[str, Any] = {
    "marker": "D",
    "markersize": 8,
    "markerfacecolor": "none",
    "markeredgecolor": palette.VERMILION,
    "markeredgewidth": 1.6,
    "linewidth": 0,
    "zorder": 6,
}
BEST: dict[str, Any] = {
    "marker": "*",
    "markersize": 10,
    "color": GREEN,
    "markeredgecolor": palette.GROUND,
    "markeredgewidth": 0.6,
    "linewidth": 0,
    "zorder": 7,
}

#: Of values whose trial has no score, or none that is drawn: they have no height.
PAPER_VALUE: dict[str, Any] = {
    "color": palette.VERMILION,
    "linestyle": (0, (1.5, 1.5)),
    "linewidth": 1.3,
    "zorder": 1.5,
}
BEST_VALUE: dict[str, Any] = {**PAPER_VALUE, "color": GREEN}

#: Inches, and the pixels of a PNG an inch.
WIDTH, _DPI = 5.2, 180

#: Where trials that are not to be seen at their score stand: as a share of the height.
EDGE = {"max": 0.025, "min": 0.975}


def named(search: Search, key: str) -> names.Metric:
    """What a figure is called in the words of the classes, and whether it is a share.

    Args:
        search: Whose figure it is.
        key: One of `METRICS`.
    """
    return names.metric("log_loss" if key == "loss" else key, search.classes)


def metric(search: Search) -> names.Metric:
    """What the objective of a search is called, and whether it is a share."""
    return named(search, search.objective.removeprefix("val_"))


def label(search: Search) -> str:
    """Names the objective, for an axis or a table."""
    return metric(search).words + (", %" if metric(search).percent else "")


def drawn(width: float, height: float, draw: Callable[[Figure], None], form: str) -> bytes:
    """Returns a picture of a width and height in inches.

    Args:
        width: Inches.
        height: Inches.
        draw: Draws it.
        form: "svg" or "png".
    """
    return figures.drawn(height, draw, form, width=width, dpi=_DPI)


def handles(search: Search, values: bool = False) -> dict[str, Line2D]:
    """Legend of the special trials; `values`: of the paper's values without a score, too."""
    lines = {}
    if search.paper_values and scored_paper(search):
        lines["the paper's choice"] = Line2D([], [], **PAPER)
    elif search.paper_values and values:
        lines["the paper's value, without a score"] = Line2D([], [], **PAPER_VALUE)
    if search.best:
        lines["best lines"] = Line2D([], [], **BEST)
    if any(trial.status == "diverged" for trial in search.trials):
        lines["diverged"] = Line2D([], [], marker="x", color=INK, markersize=5, linewidth=0)
    return lines


def scored_paper(search: Search) -> bool:
    """Whether the paper's choice was tried and has a score."""
    return bool(search.paper and search.paper.status == "completed")


def dot(colour: str) -> Line2D:
    """Legend of trials of a colour."""
    return Line2D([], [], marker="o", color=colour, alpha=0.6, markersize=4, linewidth=0)


def bar() -> Line2D:
    """Legend of a mean."""
    return Line2D([], [], marker="_", color=INK, markersize=9, markeredgewidth=2, linewidth=0)


def scaled(search: Search, score: float) -> float:
    """A score as an axis shows it: a share in percent."""
    return 100 * score if metric(search).percent else score


def limits(
    search: Search, trials: Sequence[Trial], means: Sequence[float] = ()
) -> tuple[float, float]:
    """Of the score axis: diverged trials must not press all others together."""
    values = [trial.score for trial in trials if trial.status == "completed"]
    values = [scaled(search, value) for value in (*values, *means)] or [0, scaled(search, 1)]
    pad = 0.09 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1
    return min(values) - pad, max(values) + pad
