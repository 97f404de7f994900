"""The figure of a sweep: recall over what it costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from replication.drawing import figures, palette
from replication.fields.judge.sweep import DEFAULT, Row

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Keywords of matplotlib, which differ in type.
_CHANCE: dict[str, Any] = dict(color=palette.GREY, marker="x", ms=2.5, mew=0.7, linestyle="")
_RING: dict[str, Any] = dict(marker="o", ms=10, mfc="none", mec=palette.INK, mew=1.2, linestyle="")


def sweep_figure(rows: Sequence[Row], form: str = "svg") -> bytes:
    """Draws recall over the ROIs that stage 2 has to name: a panel a radius, a line a stride.

    Args:
        rows: From `sweep.sweep`.
        form: "svg" or "png".
    """
    radii = sorted({row.radius for row in rows})
    return figures.drawn(
        1.4 + 1.75 * len(radii), lambda figure: _sweep_figure(figure, rows, radii), form
    )


def _sweep_figure(figure: Figure, rows: Sequence[Row], radii: Sequence[float]) -> None:
    panels = figure.subplots(len(radii), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    strides = sorted({row.stride for row in rows})
    styles = {
        stride: (*palette.line(n), _MARKERS[n % len(_MARKERS)]) for n, stride in enumerate(strides)
    }
    handles = {}
    for axes, radius in zip(panels, radii, strict=True):
        panel = sorted(
            (row for row in rows if row.radius == radius and row.kept_per_field),
            key=lambda row: row.kept_per_field,
        )
        axes.plot(
            [row.kept_per_field for row in panel],
            [row.recall_by_chance for row in panel],
            **_CHANCE,
        )
        for stride, (colour, dashes, marker) in styles.items():
            line = [row for row in panel if row.stride == stride]
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes}
            style |= {"ms": 4, "linewidth": 1.2, "mfc": palette.GROUND, "mew": 1.1}
            kept = [row.kept_per_field for row in line]
            axes.plot(kept, [row.recall for row in line], **style)
            ends = [row.recall_low for row in line], [row.recall_high for row in line]
            axes.vlines(kept, *ends, color=colour, linewidth=1.1, alpha=0.5)
            handles[f"stride {stride} px"] = Line2D([], [], **style)
        for row in panel:
            if row.setting == DEFAULT:
                axes.plot([row.kept_per_field], [row.recall], zorder=4, **_RING)
                handles["the default"] = Line2D([], [], **_RING)
        axes.set_title(f"suppression radius {radius:g} px", weight="normal")
        axes.grid(True)
        axes.yaxis.set_major_formatter(figures.percent_tick)
    handles["by chance"] = Line2D([], [], **_CHANCE)
    kept = [row.kept_per_field for row in rows if row.kept_per_field]
    panels[0].set_ylim(-0.02, 1.02)
    if kept:
        _logarithmic(panels[0], min(kept), max(kept))
    thresholds = sorted({row.threshold for row in rows})
    label = "ROIs that stage 2 names, per field (log scale)"
    if len(thresholds) > 1:
        label += f"\nmarks from left to right: threshold {thresholds[-1]:g} to {thresholds[0]:g}"
    panels[-1].set_xlabel(label)
    figure.supylabel("nuclei found (recall), 95 % intervals", fontsize=8.5, color=palette.INK)
    figures.legend(figure, handles.values(), handles.keys())


def _logarithmic(axes: Axes, lowest: float, highest: float) -> None:
    axes.set(xscale="log", xlim=(lowest / 1.15, highest * 1.15))
    for digits in ((1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        steps = np.array([digit * 10.0**power for power in range(-2, 7) for digit in digits])
        ticks = steps[(steps >= lowest / 1.15) & (steps <= highest * 1.15)]
        if len(ticks) > 2:
            break
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
