"""The report's figures, as SVG. Text is drawn as outlines, so that they look alike everywhere.

All are made for a width of about 11 cm: side by side on a desk, and still legible on a phone.
"""

import dataclasses
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter
from sklearn import metrics

from replication.drawing import palette
from replication.drawing.palette import BLACK, BLUE, GREY, GRID, GROUND, INK, VERMILION
from replication.measures.predictions import Predictions
from replication.runs import results

#: Role, prefix of its figures in a history, colour and dashes.
_ROLES: tuple[tuple[str, str, str, Any], ...] = (
    ("train", "", BLUE, "-"),
    ("tune", "val_", VERMILION, (0, (4, 1.2))),
)

#: Rings the best epoch.
_RING: dict[str, Any] = {"marker": "o", "mec": INK, "mfc": GROUND, "ms": 4, "linestyle": ""}

#: Width and usual height in inches, and pixels an inch of a PNG.
WIDTH, HEIGHT, _DPI = 4.4, 4.3, 100

#: Letters after which a text of a legend is broken into lines.
_LINE = 46

#: Where several seeds' curves are averaged.
_SHARES = np.linspace(0, 1, 201)

#: Of every figure, for `matplotlib.rc_context`.
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "svg.fonttype": "path",
    # Without it the ids inside the file, and with them the file, would differ every time.
    "svg.hashsalt": "report",
}


def drawn(
    height: float,
    draw: Callable[[Figure], None],
    form: str = "svg",
    *,
    width: float = WIDTH,
    dpi: int = _DPI,
) -> bytes:
    """Draws a figure in the report's style; the same figure, the same bytes.

    An SVG is dark where its reader's screen is dark.

    Args:
        height: Inches.
        draw: Draws into an empty figure.
        form: "svg" or "png".
        width: Inches.
        dpi: Pixels an inch of a PNG.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        # Neither the day nor the version of matplotlib is part of a figure.
        nameless = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=dpi, metadata=nameless)
    if form != "svg":
        return buffer.getvalue()
    return palette.with_dark_twin(buffer.getvalue().decode()).encode()


def percent_tick(value: float, _: float = 0) -> str:
    """Writes a tick of a share as it is: a tick at 0.475 is '47.5 %', and never '48 %'."""
    return f"{round(100 * value, 6):g} %"


def message(axes: Axes, text: str) -> None:
    """Writes a text into the middle of empty axes."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def legend(figure: Figure, handles: Iterable[Any], labels: Iterable[str], **options: Any) -> None:
    """Adds a legend above the axes, where it hides no curve, in as many columns as fit.

    Args:
        figure: Which; the layout makes room.
        handles: A line or patch each.
        labels: A text each.
        **options: Of `Figure.legend`.
    """
    labels = [textwrap.fill(label, _LINE, break_long_words=False) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    # A letter is about 0.065 inches wide, line and gaps about 0.6.
    columns = int(figure.get_figwidth() // (0.6 + 0.065 * longest))
    kept: dict[str, Any] = {"loc": "outside upper center", "columnspacing": 1.2, **options}
    figure.legend(list(handles), labels, ncols=min(max(1, columns), len(labels)), **kept)


def legend_height(labels: Sequence[str], width: float = WIDTH) -> float:
    """Returns the inches that `legend` takes, about.

    Args:
        labels: A text each.
        width: Of the figure, inches.
    """
    columns = max(1, int(width // (0.6 + 0.065 * min(_LINE, max(map(len, labels), default=0)))))
    lines = sum(math.ceil(len(label) / _LINE) for label in labels)
    return 0.15 + 0.2 * math.ceil(lines / columns)


def learning_curves(
    histories: Sequence[Sequence[dict[str, float]]], best_epochs: Sequence[int | None]
) -> bytes:
    """Draws loss and accuracy over the epochs, one thin line a seed.

    Args:
        histories: One for each seed; one dict for each epoch with 'loss', 'accuracy' and, where
            there is a tune role, 'val_loss' and 'val_accuracy'.
        best_epochs: Best epoch on the tune images of each seed, counted from 0; None = no tune.

    Returns:
        SVG.
    """
    return drawn(HEIGHT, lambda figure: _learning_curves(figure, histories, best_epochs))


def _learning_curves(figure: Figure, histories: Any, best_epochs: Any) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    used: dict[str, Line2D] = {}
    for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
        axes.grid(True)
        shown: list[float] = []
        for history, best in zip(histories, best_epochs, strict=True):
            for role, prefix, colour, dashes in _ROLES:
                key = prefix + metric
                epochs = [e for e, logs in enumerate(history) if key in logs]
                if not epochs:
                    continue
                values = [history[e][key] for e in epochs]
                shown += values
                axes.plot(
                    [e + 1 for e in epochs],
                    values,
                    color=colour,
                    linestyle=dashes,
                    linewidth=0.9,
                    alpha=0.85,
                    # A single epoch is a point, and a line alone would not show it.
                    marker="o" if len(values) == 1 else "",
                    markersize=3,
                )
                used[role] = Line2D([], [], color=colour, linestyle=dashes)
                if role == "tune" and best is not None and best in epochs:
                    axes.plot([best + 1], [history[best][key]], zorder=4, mew=0.9, **_RING)
                    used["best epoch"] = Line2D([], [], **_RING)
        axes.set_ylabel(metric)
        if not shown:
            message(axes, "not recorded")
        elif metric == "accuracy":
            axes.yaxis.set_major_formatter(percent_tick)
        elif min(shown) > 0 and max(shown) > 10 * np.median(shown):
            # A first epoch on unscaled pixels would press all others onto the axis.
            axes.set_yscale("log")
            axes.set_ylabel("loss (log scale)")
        else:
            axes.set_ylim(bottom=0)
    panels[1].set_xlabel("epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if used:
        legend(figure, used.values(), used.keys())


def roc_curves(predictions: Sequence[Predictions]) -> bytes:
    """Draws ROC curves, one class against the rest.

    Of two classes only the last is drawn: the curve of the other is its mirror image, with the
    same area.

    Args:
        predictions: One for each seed, on the same images. A class without any is left out, and
            named.

    Returns:
        SVG. Several seeds are thin lines under their vertical mean.
    """
    return _drawn_curves(predictions, _roc)


def precision_recall_curves(predictions: Sequence[Predictions]) -> bytes:
    """Draws precision-recall curves, one class against the rest.

    Args:
        predictions: One for each seed, on the same images. A class without any is left out, and
            named.

    Returns:
        SVG. Several seeds are thin lines under their vertical mean; areas are average precision.
    """
    return _drawn_curves(predictions, _precision_recall)


def _drawn_curves(predictions: Sequence[Predictions], kind: Callable) -> bytes:
    # The axes are square, and stay as large under the names of many classes.
    height = HEIGHT + legend_height([f"{name}  0.000" for name in predictions[0].class_names])
    return drawn(height, lambda figure: _curves(figure, predictions, kind))


def _roc(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    x, y, _ = metrics.roc_curve(positive, scores)
    return x, y, float(metrics.auc(x, y))


def _precision_recall(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    return recall[::-1], precision[::-1], float(metrics.average_precision_score(positive, scores))


def _mean_at(x: np.ndarray, y: np.ndarray, kind: Callable) -> np.ndarray:
    if kind is _roc:
        return np.interp(_SHARES, x, y)
    # Precision is not linear between two thresholds: take that of the one that reaches the recall.
    return y[np.searchsorted(x, _SHARES, side="left").clip(max=len(y) - 1)]


def _curves(figure: Figure, predictions: Sequence[Predictions], kind: Callable) -> None:
    axes = figure.subplots()
    names = predictions[0].class_names
    omitted, handles, labels = [], [], []
    for c, name in enumerate(names):
        if kind is _roc and len(names) == 2 and c == 0:
            continue
        support = int((predictions[0].labels == c).sum())
        if not support or (kind is _roc and support == len(predictions[0])):
            omitted.append(name)
            continue
        colour, dashes = palette.line(c)
        curves = [kind(p.labels == c, p.probabilities[:, c]) for p in predictions]
        steps = "default" if kind is _roc else "steps-pre"
        if len(curves) > 1:
            for x, y, _ in curves:
                axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.45, drawstyle=steps)
            x, y = _SHARES, np.mean([_mean_at(x, y, kind) for x, y, _ in curves], axis=0)
        else:
            x, y, _ = curves[0]
        if kind is _roc:
            x, y = np.append(0, x), np.append(0, y)
        area = np.mean([area for *_, area in curves])
        axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.7, drawstyle=steps)
        handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=1.7))
        labels.append(f"{name}  {area:.3f}")
    if kind is _roc:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
        axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    else:
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.grid(True)
    title = "area (AUC)" if kind is _roc else "area (average precision)"
    if handles:
        legend(figure, handles, labels, title=title, handlelength=2.6)
    else:
        message(axes, "not defined")
    if omitted:
        reason = "no test image" if len(omitted) < len(names) else "one class only"
        axes.set_title(f"left out, {reason}: {', '.join(omitted)}", weight="normal")
    # Axes that are square settle in the second layout.
    if engine := figure.get_layout_engine():
        engine.execute(figure)


def forest(rows: Sequence[results.Row]) -> bytes:
    """Draws the accuracy of every protocol beside the published one, a panel for each stage.

    Args:
        rows: One for each stage and protocol, from `results.summary_rows`.

    Returns:
        SVG. Bars are 95 % intervals, the band is the published one, and where there are several
        seeds small ticks mark the lowest and the highest.
    """
    stages = list(dict.fromkeys(row.stage for row in rows))
    lines = [1 + sum(row.stage == stage for row in rows) for stage in stages]
    height = sum(0.85 + 0.29 * count for count in lines)
    return drawn(height or 1, lambda figure: _forest(figure, rows, stages, lines))


def _forest(
    figure: Figure, rows: Sequence[results.Row], stages: list[int], lines: list[int]
) -> None:
    if not stages:
        message(figure.subplots(), "no finished fit")
        return
    heights = [0.6 + count for count in lines]
    panels = figure.subplots(len(stages), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, stage in zip(panels, stages, strict=True):
        _forest_of_stage(axes, [row for row in rows if row.stage == stage])
    panels[-1].set_xlabel("accuracy, %")


@dataclasses.dataclass(frozen=True)
class _Bar:
    """A line of a forest plot, in shares of 1; `ends` are the lowest and the highest seed."""

    name: str
    marker: str
    colour: str
    mean: float
    low: float
    high: float
    ends: tuple[float, ...] = ()


def _forest_of_stage(axes: Axes, rows: Sequence[results.Row]) -> None:
    figure_of_paper = rows[0].published
    value, low_high = figure_of_paper.value, figure_of_paper.interval
    # A published range has no single point.
    point = value if isinstance(value, float | int) else math.nan
    low, high = low_high or (math.nan, math.nan)
    if low_high:
        axes.axvspan(100 * low, 100 * high, color=BLACK, alpha=0.07, linewidth=0)
    bars = [_Bar("published", "D", INK, point, low, high)]
    for row in rows:
        s = row.summary["accuracy"]
        ends = (s.minimum, s.maximum) if s.seeds > 1 else ()
        marker = "s" if row.protocol == "paper" else "o"
        bars.append(_Bar(row.protocol, marker, BLUE, s.mean, s.low, s.high, ends))
    for y, bar in enumerate(bars):
        axes.plot([100 * bar.low, 100 * bar.high], [y, y], color=bar.colour, linewidth=1.6)
        axes.plot([100 * bar.mean], [y], marker=bar.marker, color=bar.colour, markersize=6)
        if bar.ends:
            x = [100 * end for end in bar.ends]
            axes.plot(x, [y, y], "|", color=bar.colour, markersize=8, markeredgewidth=0.8)
        text = with_interval(bar.mean, bar.low, bar.high)
        if y == 0:
            text = _published_text(figure_of_paper)
        axes.text(1.03, y, text, va="center", transform=axes.get_yaxis_transform())
    places = [
        100 * share
        for bar in bars
        for share in (bar.mean, bar.low, bar.high, *bar.ends)
        if math.isfinite(share)
    ]
    pad = max(0.5, 0.06 * (max(places) - min(places))) if places else 1
    axes.set_xlim(*((min(places) - pad, min(max(places) + pad, 101)) if places else (0, 100)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_title(f"Stage {rows[0].stage}: {' / '.join(dict.fromkeys(row.name for row in rows))}")


def with_interval(value: float, low: float, high: float) -> str:
    """Writes a share as percent with its interval, for example '97.3  [95.9, 98.2]'."""
    if not math.isfinite(value):
        return "not defined"
    if not math.isfinite(low):
        return f"{100 * value:.1f}  no interval"
    return f"{100 * value:.1f}  [{100 * low:.1f}, {100 * high:.1f}]"


def _published_text(figure: Any) -> str:
    if figure.value is None:
        return "not published"
    if not isinstance(figure.value, tuple):
        return with_interval(figure.value, *(figure.interval or (math.nan, math.nan)))
    ends = " to ".join(f"{100 * end:.1f}" for end in figure.value)
    return f"{ends}  [{100 * figure.interval[0]:.1f}, {100 * figure.interval[1]:.1f}]"
