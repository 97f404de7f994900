"""The figures of what matters in a search: marginal effects, and how two of them interact."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    AutoMinorLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from finetune.report import figure_parts
from finetune.report.effects import Effect, Effects
from finetune.search.trials import Search, find, worded
from replication.drawing import figures, palette

#: Width and height of a panel: with few panels a page shows two a row, else three.
_LARGE, _SMALL = (4.4, 2.9), (3.4, 2.5)

#: A log axis that spans less names more than its powers of ten.
_DECADES = 100

#: Labels below a panel with more letters are slanted.
_LETTERS = 30


def marginal_effect(search: Search, effects: Effects, effect: Effect, form: str = "svg") -> bytes:
    """Draws one hyperparameter: every trial, and the marginal mean of each level.

    Args:
        search: The search.
        effects: The marginal effects of its trials; all panels have the same scale.
        effect: One of them.
        form: "svg" or "png".

    Returns:
        The picture.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _panel(axes, search, effects, effect)
        axes.set_ylabel(figure_parts.label(search))

    return figure_parts.drawn(*(_LARGE if len(effects.effects) <= 4 else _SMALL), draw, form)


def marginal_effects(search: Search, effects: Effects, form: str = "svg") -> bytes:
    """Draws a panel for each hyperparameter, the most important one first.

    Args:
        search: The search.
        effects: The marginal effects of its trials, at least one.
        form: "svg" or "png".

    Returns:
        The picture, with two to four panels a row.
    """
    count = len(effects.effects)
    columns = min(count, 2 if count <= 4 else 3 if count <= 9 else 4)
    rows = math.ceil(count / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, effect in zip(panels, effects.effects, strict=False):
            _panel(axes, search, effects, effect)
        for axes in panels[count:]:
            axes.remove()
        figure.supylabel(figure_parts.label(search), fontsize=8.5)
        handles = {
            "a trial": figure_parts.dot(figure_parts.TRIAL),
            "mean" if search.tuner == "bayesian" else "mean, 95 % interval": figure_parts.bar(),
            **figure_parts.handles(search, True),
        }
        figures.legend(figure, handles.values(), handles.keys())

    return figure_parts.drawn(columns * 2.9, rows * 2.2 + 0.4, draw, form)


def _panel(axes: Axes, search: Search, effects: Effects, effect: Effect) -> None:
    means = [level.mean for one in effects.effects for level in one.levels]
    axes.set_ylim(*figure_parts.limits(search, effects.trials, means))
    _axis(axes, effect)
    axes.grid(True, axis="y")
    seen: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(effect.levels):
        members = effect.members[number]
        places = _places(effect, number)
        for x, trial in zip(places, members, strict=True):
            seen[trial.trial_id] = (x, figure_parts.scaled(search, trial.score))
        done = [seen[t.trial_id] for t in members if t.status == "completed"]
        if done:
            axes.plot(
                *zip(*done, strict=True), "o", color=figure_parts.TRIAL, alpha=0.5, ms=3.4, mew=0
            )
        lost = [x for x, t in zip(places, members, strict=True) if t.status == "diverged"]
        edge = [figure_parts.EDGE[search.direction]] * len(lost)
        axes.plot(
            lost, edge, "x", color=figure_parts.INK, ms=3.6, transform=axes.get_xaxis_transform()
        )
        mean, low, high = (
            figure_parts.scaled(search, v) for v in (level.mean, level.low, level.high)
        )
        if level.end > level.start:
            ends = [level.start, level.end]
            axes.fill_between(
                ends, low, high, color=figure_parts.INK, alpha=0.16, linewidth=0, zorder=3
            )
            axes.plot(ends, [mean, mean], color=figure_parts.INK, linewidth=2, zorder=4)
        else:
            x = level.start if effect.binned else number
            axes.plot([x, x], [low, high], color=figure_parts.INK, linewidth=1.3, zorder=4)
            axes.plot(x, mean, "_", color=figure_parts.INK, ms=12, mew=2, zorder=4)
    axes.set_title(worded(effect.name))
    axes.set_title(f"{100 * effect.importance:.0f} %", loc="right", weight="normal")
    if effect.active < len(effects.trials):
        among = f"active in {effect.active} of {len(effects.trials)}"
        axes.set_xlabel(f"{axes.get_xlabel()} ({among})".strip())
    _mark_special(axes, search, effects, effect, seen)


def _mark_special(
    axes: Axes,
    search: Search,
    effects: Effects,
    effect: Effect,
    seen: dict[str, tuple[float, float]],
) -> None:
    """The paper's choice and the best found: a mark at its score, or a line at its value."""
    sought = (
        (search.paper_values, figure_parts.PAPER, figure_parts.PAPER_VALUE),
        (search.best and search.best.values, figure_parts.BEST, figure_parts.BEST_VALUE),
    )
    for values, style, value_style in sought:
        if not values:
            continue
        trial = find(effects.trials, values)
        if trial and trial.trial_id in seen and trial.status == "completed":
            axes.plot(*seen[trial.trial_id], **style, clip_on=False)
        elif (level := effect.level_of(values.get(effect.name))) is not None:
            # A mark would stand at a score that nobody measured.
            x = float(values[effect.name]) if effect.binned else level
            axes.axvline(x, **value_style)


def _axis(axes: Axes, effect: Effect) -> None:
    if effect.binned:
        if effect.kind == "log number":
            axes.set_xscale("log")
            if effect.levels[-1].end < _DECADES * effect.levels[0].start:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            else:
                axes.xaxis.set_major_locator(LogLocator(numticks=5))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("log scale")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.xaxis.set_minor_locator(AutoMinorLocator())
        return
    _label_levels(axes, effect, 0, _LETTERS)
    axes.set_xlim(-0.6, len(effect.levels) - 0.4)
    axes.tick_params(axis="x", length=0)


def _label_levels(axes: Axes, effect: Effect, start: float, letters: int) -> None:
    """Names the levels below the axis, slanted where there is no room for so many letters."""
    labels = [level.label for level in effect.levels]
    slanted = sum(map(len, labels)) > letters
    turned: dict[str, Any] = {}
    if slanted:
        turned = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(np.arange(len(labels)) + start, labels, **turned)


def _places(effect: Effect, number: int) -> list[float]:
    members = effect.members[number]
    if effect.binned:
        return [float(trial.values[effect.name]) for trial in members]
    # Multiples of the golden ratio spread any number of dots evenly.
    return [number + 0.5 * ((i * 0.618034) % 1 - 0.5) for i in range(len(members))]


def interaction(search: Search, effects: Effects, form: str = "svg") -> bytes:
    """Draws the mean score for every pair of levels of the two most important hyperparameters.

    Args:
        search: The search.
        effects: The marginal effects of its trials, at least two.
        form: "svg" or "png".

    Returns:
        The picture. Unlike marginal effects these means are of the trials alone, unadjusted.
    """
    rows = len(effects.effects[0].levels)
    return figure_parts.drawn(
        figure_parts.WIDTH,
        1.1 + 0.52 * rows,
        lambda figure: _interaction(figure, search, effects),
        form,
    )


def _interaction(figure: Figure, search: Search, effects: Effects) -> None:
    axes = figure.subplots()
    down, across = effects.effects[:2]
    cells = {
        (row, column): [
            figure_parts.scaled(search, effects.scores[trial.trial_id])
            for trial in down.members[row]
            if trial in across.members[column]
        ]
        for row in range(len(down.levels))
        for column in range(len(across.levels))
    }
    means = np.full((len(down.levels), len(across.levels)), math.nan)
    for cell, scores in cells.items():
        if scores:
            means[cell] = np.mean(scores)
    low, high = np.nanmin(means), np.nanmax(means)
    span = (high - low) or 1
    axes.pcolormesh(
        np.ma.masked_invalid(means),
        cmap=palette.DEPTH,
        vmin=low - 0.05 * span,
        vmax=high + 0.2 * span,
        edgecolor=palette.GRID,
        linewidth=1.5,
    )
    digits = 1 if figure_parts.metric(search).percent else 3
    for (row, column), scores in cells.items():
        at = (column + 0.5, row + 0.5)
        if not scores:
            axes.annotate(
                "not tried", at, ha="center", va="center", fontsize=7, color=figure_parts.GREY
            )
            continue
        dark = (means[row, column] - low) / span > 0.6
        colour = palette.ON_COLOUR if dark else figure_parts.INK
        for text, shift, size in (
            (f"{means[row, column]:.{digits}f}", 4.5, 9),
            (f"{len(scores)} trial{'s' if len(scores) > 1 else ''}", -6.5, 6.5),
        ):
            axes.annotate(
                text,
                at,
                (0, shift),
                textcoords="offset points",
                ha="center",
                va="center",
                color=colour,
                fontsize=size,
            )
    _label_levels(axes, across, 0.5, 2 * _LETTERS)
    axes.set_yticks(np.arange(len(down.levels)) + 0.5, [one.label for one in down.levels])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=worded(across.name), ylabel=worded(down.name))
    axes.set_title(f"mean {figure_parts.label(search)}", weight="normal")
