"""The figures of a backbone comparison: accuracy against cost, the ranking, and the leak.

SVG for the page, PNG for a readme; made for a width of about 13 cm, in the style of
`replication.drawing.figures`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from replication.comparison.ranking import COSTS, Comparison
from replication.drawing import figures, palette, shown
from replication.measures.names import METRICS
from tfds_pap import files

_BLUE, _ORANGE, _GREY, _INK = palette.BLUE, palette.VERMILION, palette.GREY, palette.INK

#: Inches; pixels of a PNG are 180 times that, so that a readme 900 pixels wide shows it sharp.
_WIDTH, _DPI = 5.2, 180

_COST_LABELS = {
    "gflops": "GFLOPs of one image (log scale)",
    "parameters": "parameters, millions (log scale)",
    "milliseconds": "ms an image, measured (log scale)",
}


def write(directory: Path, result: Comparison) -> list[Path]:
    """Writes every figure as PNG.

    Args:
        directory: Where to; the files are `accuracy_against_<cost>.png`, `ranking.png` and, where
            two cuts were scored, `leak_<metric>.png`.
        result: The comparison.

    Returns:
        The paths.
    """
    drawings = {
        f"accuracy_against_{cost}.png": functools.partial(accuracy_against, result, cost)
        for cost in COSTS
    }
    drawings["ranking.png"] = functools.partial(ranking, result)
    if result.leaks:
        for metric in ("accuracy", "balanced_accuracy"):
            drawings[f"leak_{metric}.png"] = functools.partial(leak, result, metric)
    for name, draw in drawings.items():
        files.write_atomically(directory / name, draw(form="png"))
    return [directory / name for name in drawings]


def _drawn(height: float, draw: Callable[[Figure], None], form: str) -> bytes:
    return figures.drawn(height, draw, form, width=_WIDTH, dpi=_DPI)


def accuracy_against(result: Comparison, cost: str, form: str = "svg") -> bytes:
    """Draws mean accuracy and its interval against a cost, with the Pareto front.

    Args:
        result: The comparison.
        cost: 'gflops', 'parameters' or 'milliseconds'.
        form: 'svg' or 'png'.

    Returns:
        The picture. Untrained backbones are hollow, and stand on no front unless all are untrained.
    """
    return _drawn(4.1, lambda figure: _accuracy_against(figure, result, cost), form)


def _accuracy_against(figure: Figure, result: Comparison, cost: str) -> None:
    axes = figure.subplots()
    front = result.front(cost)
    scale = 1e-6 if cost == "parameters" else 1
    drawn: dict[str, tuple[float, float, float, float]] = {}
    for entry in result.ranked:
        candidate, accuracy = entry.candidate, entry.summary["accuracy"]
        at, mean = scale * getattr(candidate.cost, cost), 100 * accuracy.mean
        low, high = 100 * accuracy.low, 100 * accuracy.high
        drawn[candidate.name] = at, mean, low, high
        colour = _BLUE if candidate.name in front else _GREY
        axes.vlines(at, low, high, color=colour, alpha=0.4, linewidth=1.2)
        face = colour if candidate.trained else palette.GROUND
        axes.plot(at, mean, "o", color=colour, markerfacecolor=face, markersize=6, zorder=4)
    steps = np.array([drawn[name][:2] for name in front])
    axes.set_xscale("log")
    cheapest, dearest = min(p[0] for p in drawn.values()), max(p[0] for p in drawn.values())
    # A single cost, too, needs an axis with some width.
    axes.set_xlim(cheapest / 2, dearest * 2)
    # Beyond its dearest member the front goes on: paying more buys nothing.
    x = np.append(np.repeat(steps[:, 0], 2)[1:], dearest * 2)
    y = np.repeat(steps[:, 1], 2)
    axes.plot(x, y, color=_BLUE, linewidth=1.1, zorder=2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=_COST_LABELS[cost], ylabel="accuracy, %")
    axes.grid(True)
    handles = {
        "Pareto front": Line2D([], [], marker="o", color=_BLUE, linewidth=1.1),
        "off the front": Line2D([], [], marker="o", color=_GREY, linewidth=0),
    }
    if not all(entry.candidate.trained for entry in result.ranked):
        handles["untrained backbone"] = Line2D(
            [], [], marker="o", color=_GREY, markerfacecolor=palette.GROUND, linewidth=0
        )
    figures.legend(figure, handles.values(), handles.keys())
    bars = [((at, low), (at, high)) for at, _, low, high in drawn.values()]
    front_line = list(itertools.pairwise(zip(x.tolist(), y.tolist(), strict=True)))
    _label(figure, axes, {name: point[:2] for name, point in drawn.items()}, bars + front_line)


def _label(
    figure: Figure,
    axes: Axes,
    at: dict[str, tuple[float, float]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    """Writes each name beside its point where it hides least; a thin line leads to far ones."""
    # The layout must be final before anything can be measured.
    figure.draw_without_rendering()
    centres = axes.transData.transform(list(at.values()))
    taken = [np.concatenate([centre - 6, centre + 6]) for centre in centres]
    thin = []
    for start, end in lines:
        ends = np.sort(axes.transData.transform([start, end]), axis=0)
        thin.append(np.concatenate([ends[0] - 1, ends[1] + 1]))
    frame = axes.get_window_extent().extents
    halo = [patheffects.withStroke(linewidth=2.2, foreground=palette.GROUND)]
    for number, (name, point) in enumerate(at.items()):
        text = axes.annotate(
            name,
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=7.5,
            zorder=5,
            path_effects=halo,
        )
        text.set_in_layout(False)
        boxes = _boxes(centres[number], text.get_window_extent(), figure.dpi / 72)
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        # A name that stands nearer to another point would be read as that one's.
        gaps = np.linalg.norm(np.clip(centres, low, high) - centres, axis=2)
        mistaken = (gaps < gaps[:, [number]] + 2).sum(axis=1) - 1
        outside = (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)
        hidden, crossed = _overlaps(boxes, taken), _overlaps(boxes, thin)
        badness = 100 * (outside + hidden) + 15 * mistaken + 8 * crossed + _REACHES
        place = int(badness.argmin())
        best = _PLACES[place]
        text.set(position=best[:2], ha=best[2], va=best[3])
        taken.append(boxes[place])
        if _REACHES[place] > 2:
            axes.annotate(
                "",
                point,
                best[:2],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.5, "shrinkB": 4},
            ).set_in_layout(False)


#: Where a name may stand: right, left, above, below and between, near and far; its offset in
#: points, horizontal and vertical alignment.
_PLACES = [
    (
        radius * math.cos(angle),
        radius * math.sin(angle),
        "left" if math.cos(angle) > 0.1 else "right" if math.cos(angle) < -0.1 else "center",
        "bottom" if math.sin(angle) > 0.8 else "top" if math.sin(angle) < -0.8 else "center",
    )
    for radius, angle in itertools.product((7, 14, 24, 36, 50, 66), np.arange(0, 2, 0.125) * np.pi)
]


_REACHES = np.array([math.hypot(*place[:2]) / 7 for place in _PLACES])


def _boxes(point: np.ndarray, size: Bbox, pixels: float) -> np.ndarray:
    """Where a text of a size would lie at each of `_PLACES`, with a pixel around it.

    Args:
        point: x and y, in pixels.
        size: Extent of the text, in pixels.
        pixels: Number of pixels in a point.

    Returns:
        float64 ``[places, 4]``: left, bottom, right, top.
    """
    share = {"left": 0, "bottom": 0, "center": 0.5, "right": 1, "top": 1}
    moved = np.array([[share[ha], share[va]] for *_, ha, va in _PLACES])
    extent = np.array([size.width, size.height])
    corner = point + pixels * np.array([place[:2] for place in _PLACES]) - moved * extent
    return np.hstack([corner - 1, corner + extent + 1])


def _overlaps(boxes: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """How many of the others each box lies on, ``[boxes]``."""
    first, second = boxes[:, None], np.reshape(others, (-1, 4))
    apart = (first[..., :2] > second[:, 2:]) | (first[..., 2:] < second[:, :2])
    return (~apart.any(axis=2)).sum(axis=1)


def ranking(result: Comparison, form: str = "svg") -> bytes:
    """Draws the ranking in the manner of a critical-difference diagram.

    Args:
        result: The comparison.
        form: 'svg' or 'png'.

    Returns:
        The picture: mean accuracies with 95 % intervals, and a bar beside every set of neighbours
        that cannot be told apart. The bars come from `pairs.pairwise`, not from Nemenyi's
        test.
    """
    return _drawn(1.3 + 0.27 * len(result.ranked), lambda f: _ranking(f, result), form)


def _ranking(figure: Figure, result: Comparison) -> None:
    axes = figure.subplots()
    names = [entry.candidate.name for entry in result.ranked]
    for y, entry in enumerate(result.ranked):
        s = entry.summary["accuracy"]
        face = _BLUE if entry.candidate.trained else palette.GROUND
        axes.plot([100 * s.low, 100 * s.high], [y, y], color=_BLUE, linewidth=1.6)
        axes.plot(100 * s.mean, y, "o", color=_BLUE, markerfacecolor=face, markersize=6)
        if s.seeds > 1:
            ends = [100 * s.minimum, 100 * s.maximum]
            axes.plot(ends, [y, y], "|", color=_BLUE, markersize=8, markeredgewidth=0.8)
    beside = axes.get_yaxis_transform()
    for column, names_of_set in enumerate(result.sets):
        first, last = names.index(names_of_set[0]), names.index(names_of_set[-1])
        axes.plot(
            [1.03 + 0.035 * column] * 2,
            [first - 0.25, last + 0.25],
            color=_INK,
            linewidth=3,
            solid_capstyle="butt",
            transform=beside,
            clip_on=False,
        )
    for y, entry in enumerate(result.ranked):
        s = entry.summary["accuracy"]
        text = figures.with_interval(s.mean, s.low, s.high)
        x = 1.03 + 0.035 * len(result.sets)
        axes.text(x, y, text, va="center", transform=beside)
    _rows(axes, names, result, "accuracy, %")
    bars = "A black bar joins neighbours that cannot be told apart" if result.sets else ""
    if len(names) == 1:
        bars = "One backbone: there is nothing to compare"
    bars = bars or "No neighbours in the ranking are undecided"
    how = "(pairwise McNemar with Holm's correction, and paired intervals;\nnot Nemenyi)"
    title = bars if len(names) == 1 else f"{bars}\n{how}"
    axes.set_title(title, weight="normal", fontsize=8.5)


def leak(result: Comparison, metric: str = "accuracy", form: str = "svg") -> bytes:
    """Draws what a cut by image adds: both cuts, and the control that tells leak from scarcity.

    Args:
        result: A comparison that was scored under both cuts.
        metric: 'accuracy', 'balanced_accuracy' or 'macro_f1'.
        form: 'svg' or 'png'.

    Returns:
        The picture. Bars are 95 % intervals; beside each row stand leak and scarcity with their
        own. A dotted line is what always naming the most frequent class scores.
    """
    height = 1.4 + 0.55 * len(result.leaks)
    return _drawn(height, lambda figure: _leak(figure, result, metric), form)


def _leak(figure: Figure, result: Comparison, metric: str) -> None:
    axes = figure.subplots()
    cuts = (
        ("by_image", "folds cut by image", _ORANGE, "s", -0.22),
        ("let_in", f"as few {result.unit}s, own let in", _GREY, "D", 0.0),
        ("by_group", f"folds cut by {result.unit}", _BLUE, "o", 0.22),
    )
    handles: list[Line2D] = []
    names: list[str] = []
    for cut, name, colour, marker, shift in cuts:
        for y, one in enumerate(result.leaks):
            if cut == "let_in" and one.control is None:
                continue
            summaries = getattr(one.control if cut == "let_in" else one, cut)
            summary, at = summaries[metric], [y + shift] * 2
            if math.isfinite(summary.low):
                axes.plot([100 * summary.low, 100 * summary.high], at, color=colour, linewidth=1.5)
            axes.plot(100 * summary.mean, y + shift, marker, color=colour, markersize=5)
            if name not in names:
                handles.append(Line2D([], [], marker=marker, color=colour, linewidth=1.5))
                names.append(name)
    beside = axes.get_yaxis_transform()
    for y, one in enumerate(result.leaks):
        parts = {"difference": one.difference}
        if one.control:
            parts = {"leak": one.control.leak, "scarcity": one.control.scarcity}
        lines = []
        for name, of in parts.items():
            unsure = "" if of[metric].told_from_zero else " *"
            ends = shown.points_interval(of[metric].low, of[metric].high)
            lines.append(f"{name} {shown.points(of[metric].value)}  {ends}{unsure}")
        axes.text(1.03, y, "\n".join(lines), va="center", transform=beside, fontsize=8.5)
    majority = 100 * result.leaks[0].majority[metric]
    handles.append(axes.axvline(majority, color=_INK, linestyle=":", linewidth=1))
    names.append(f"always {result.leaks[0].majority_class}")
    note = "points; * not told apart from 0"
    axes.text(1.03, -0.75, note, va="bottom", transform=beside, fontsize=8.5)
    _rows(axes, [one.name for one in result.leaks], result, f"{METRICS[metric].words}, %")
    figures.legend(figure, handles, names)


def _rows(axes: Axes, names: Sequence[str], result: Comparison, label: str) -> None:
    untrained = {c.name for c in result.candidates if not c.trained}
    axes.set_yticks(range(len(names)), [name + "*" * (name in untrained) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(True, axis="x")
    axes.set_xlabel(label + ("     * untrained backbone" if untrained & {*names} else ""))
