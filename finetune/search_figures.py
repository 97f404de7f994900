"""The figures of a hyperparameter search: marginal effects, interaction, history, halving, folds.

SVG for the page, PNG for a readme, in the style of `replication.figures`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    AutoMinorLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from finetune.effects import Effect, Effects
from finetune.trials import Search, Trial, configurations, find, worded
from replication import figures, runs

#: What an objective is called, without its "val_".
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "hsil_plus_sensitivity": "HSIL+ sensitivity",
    "loss": "log loss",
}

_TRIAL, _GREEN, _GREY, _INK = "#0072B2", "#009E73", "#8a8a8a", figures.INK

#: Hollow, so that the star of the best found is seen in it where they are one.
_PAPER = {
    "marker": "D",
    "markersize": 8,
    "markerfacecolor": "none",
    "markeredgecolor": "#D55E00",
    "markeredgewidth": 1.6,
    "linewidth": 0,
    "zorder": 6,
}
_BEST = {
    "marker": "*",
    "markersize": 10,
    "color": _GREEN,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
    "linewidth": 0,
    "zorder": 7,
}

#: Inches, and the pixels of a PNG an inch.
_WIDTH, _DPI = 5.2, 180

#: Width and height of a panel: with few panels a page shows two a row, else three.
_LARGE, _SMALL = (4.4, 2.9), (3.4, 2.5)

#: Where trials that are not to be seen at their score stand: as a share of the height.
_EDGE = {"max": 0.025, "min": 0.975}

#: Colours of Hyperband's brackets.
_BRACKETS = ("#0072B2", "#CC79A7", "#E69F00", "#000000", "#56B4E9")

#: A log axis that spans less names more than its powers of ten.
_DECADES = 100

#: Labels below a panel with more letters are slanted.
_LETTERS = 30


def label(search: Search) -> str:
    """Names the objective, for an axis or a table."""
    metric = search.objective.removeprefix("val_")
    return METRICS.get(metric, worded(metric)) + (", %" if is_share(metric) else "")


def is_share(metric: str) -> bool:
    """Whether a figure is a share, and shown in percent."""
    return metric in METRICS and metric != "loss"


def write(directory: Path, search: Search, effects: Effects) -> list[Path]:
    """Writes every figure that the search has something for, as PNG.

    Args:
        directory: Where to; the files are `history.png` and, where there are enough trials,
            `effects.png`, `interaction.png`, `halving.png` and `fold.png`.
        search: The search.
        effects: Of its trials.

    Returns:
        The paths.
    """
    drawings = {"history": functools.partial(history, search)}
    if effects.effects:
        drawings["effects"] = functools.partial(marginal_effects, search, effects)
    if len(effects.effects) > 1:
        drawings["interaction"] = functools.partial(interaction, search, effects)
    if has_promotions(search):
        drawings["halving"] = functools.partial(halving, search)
    if search.held_out:
        drawings["fold"] = functools.partial(fold_against_held_out, search)
    for name, draw in drawings.items():
        runs.write_atomically(directory / f"{name}.png", draw(form="png"))
    return [directory / f"{name}.png" for name in drawings]


def _drawn(width: float, height: float, draw: Callable[[Figure], None], form: str) -> bytes:
    def sized(figure: Figure) -> None:
        figure.set_figwidth(width)
        draw(figure)

    with matplotlib.rc_context({"figure.dpi": _DPI}):
        return figures.drawn(height, sized, form)


def marginal_effect(search: Search, effects: Effects, effect: Effect, form: str = "svg") -> bytes:
    """Draws one hyperparameter: every trial, and the marginal mean of each level.

    Args:
        search: The search.
        effects: Of its trials; all of its panels have the same scale.
        effect: One of them.
        form: "svg" or "png".

    Returns:
        The picture.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _panel(axes, search, effects, effect)
        axes.set_ylabel(label(search))

    return _drawn(*(_LARGE if len(effects.effects) <= 4 else _SMALL), draw, form)


def marginal_effects(search: Search, effects: Effects, form: str = "svg") -> bytes:
    """Draws a panel for each hyperparameter, the most important one first.

    Args:
        search: The search.
        effects: Of its trials, at least one.
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
        figure.supylabel(label(search), fontsize=8.5)
        handles = {"a trial": _dot(_TRIAL), "mean, 95 % interval": _bar(), **_handles(search, True)}
        place = {"loc": "outside upper center", "ncols": 3 if columns < 3 else 5}
        figure.legend(handles.values(), handles.keys(), **place)

    return _drawn(columns * 2.9, rows * 2.2 + 0.4, draw, form)


def _handles(search: Search, values: bool = False) -> dict[str, Line2D]:
    """Legend of the special trials; `values`: the paper's ones are shown without a trial, too."""
    found = {}
    if search.paper_values and (values or search.paper):
        found["the paper's choice"] = Line2D([], [], **_PAPER)
    if search.best:
        found["best found"] = Line2D([], [], **_BEST)
    if any(trial.status == "diverged" for trial in search.trials):
        found["diverged"] = Line2D([], [], marker="x", color=_INK, markersize=5, linewidth=0)
    return found


def _dot(colour: str) -> Line2D:
    return Line2D([], [], marker="o", color=colour, alpha=0.6, markersize=4, linewidth=0)


def _bar() -> Line2D:
    return Line2D([], [], marker="_", color=_INK, markersize=9, markeredgewidth=2, linewidth=0)


def _scaled(search: Search, score: float) -> float:
    return 100 * score if is_share(search.objective.removeprefix("val_")) else score


def _limits(search: Search, trials: Sequence[Trial], means: Sequence[float] = ()) -> tuple:
    """Of the score axis: diverged trials must not press all others together."""
    values = [trial.score for trial in trials if trial.status == "completed"]
    values = [_scaled(search, value) for value in (*values, *means)] or [0, _scaled(search, 1)]
    pad = 0.09 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1
    return min(values) - pad, max(values) + pad


def _panel(axes: Axes, search: Search, effects: Effects, effect: Effect) -> None:
    means = [level.mean for one in effects.effects for level in one.levels]
    axes.set_ylim(*_limits(search, effects.trials, means))
    _axis(axes, effect)
    axes.grid(True, axis="y")
    seen: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(effect.levels):
        members = effect.members[number]
        places = _places(effect, number)
        for x, trial in zip(places, members, strict=True):
            seen[trial.trial_id] = (x, _scaled(search, trial.score))
        done = [seen[t.trial_id] for t in members if t.status == "completed"]
        if done:
            axes.plot(*zip(*done, strict=True), "o", color=_TRIAL, alpha=0.35, ms=3.2, mew=0)
        lost = [x for x, t in zip(places, members, strict=True) if t.status == "diverged"]
        edge = [_EDGE[search.direction]] * len(lost)
        axes.plot(lost, edge, "x", color=_INK, ms=3.6, transform=axes.get_xaxis_transform())
        mean, low, high = (_scaled(search, v) for v in (level.mean, level.low, level.high))
        if level.end > level.start:
            ends = [level.start, level.end]
            axes.fill_between(ends, low, high, color=_INK, alpha=0.16, linewidth=0, zorder=3)
            axes.plot(ends, [mean, mean], color=_INK, linewidth=2, zorder=4)
        else:
            x = level.start if effect.binned else number
            axes.plot([x, x], [low, high], color=_INK, linewidth=1.3, zorder=4)
            axes.plot(x, mean, "_", color=_INK, ms=12, mew=2, zorder=4)
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
    """The paper's choice and the best found, at their trials or, if not drawn, at their values."""
    sought = ((search.paper_values, _PAPER), (search.best and search.best.values, _BEST))
    for values, style in sought:
        if not values:
            continue
        trial = find(effects.trials, values)
        if trial and trial.trial_id in seen and trial.status == "completed":
            axes.plot(*seen[trial.trial_id], **style, clip_on=False)
        elif (level := effect.level_of(values.get(effect.name))) is not None:
            x = values[effect.name] if effect.binned else level
            edge = 1 - _EDGE[search.direction]
            axes.plot(x, edge, **style, clip_on=False, transform=axes.get_xaxis_transform())


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
    turned = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(np.arange(len(labels)) + start, labels, **turned)


def _places(effect: Effect, number: int) -> list[float]:
    members = effect.members[number]
    if effect.binned:
        return [float(trial.values[effect.name]) for trial in members]
    # Multiples of the golden ratio spread any number of dots evenly.
    return [number + 0.5 * ((i * 0.618034) % 1 - 0.5) for i in range(len(members))]


def history(search: Search, form: str = "svg") -> bytes:
    """Draws the score of every trial in the order in which they ended, and the best so far.

    Args:
        search: The search; perhaps without a trial.
        form: "svg" or "png".

    Returns:
        The picture. Hyperband's trials are coloured by their epochs.
    """
    return _drawn(_WIDTH, 3.1, lambda figure: _history(figure, search), form)


def _history(figure: Figure, search: Search) -> None:
    axes = figure.subplots()
    trials = sorted(search.trials, key=lambda trial: trial.order)
    numbers = {trial.trial_id: n for n, trial in enumerate(trials, start=1)}
    done = [trial for trial in trials if trial.status == "completed"]
    lost = [numbers[trial.trial_id] for trial in trials if trial.status == "diverged"]
    axes.set_xlabel("trial, in the order in which they ended")
    axes.set_ylabel(label(search))
    axes.set_ylim(*_limits(search, trials))
    last = max(search.planned or 0, len(trials), 1)
    pad = max(0.7, 0.015 * last)
    axes.set_xlim(1 - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, axis="y")
    handles: dict[str, Line2D] = {}
    budgets = sorted({trial.epochs for trial in done}) if has_promotions(search) else [None]
    colours = _shades(len(budgets)) if len(budgets) > 1 else [_TRIAL]
    for budget, colour in zip(budgets, colours, strict=True):
        some = [trial for trial in done if budget in (None, trial.epochs)]
        places = [(numbers[t.trial_id], _scaled(search, t.score)) for t in some]
        if places:
            axes.plot(*zip(*places, strict=True), "o", color=colour, ms=4, mew=0, alpha=0.8)
            handles["a trial" if budget is None else f"{budget} epochs"] = _dot(colour)
    if done:
        sign = 1 if search.direction == "max" else -1
        best = sign * np.maximum.accumulate([sign * _scaled(search, t.score) for t in done])
        steps = [numbers[trial.trial_id] for trial in done]
        axes.step(
            [*steps, len(trials)], [*best, best[-1]], where="post", color=_GREEN, linewidth=1.3
        )
        handles["best so far"] = Line2D([], [], color=_GREEN, linewidth=1.3)
    edge = [_EDGE[search.direction]] * len(lost)
    axes.plot(lost, edge, "x", color=_INK, ms=4, transform=axes.get_xaxis_transform())
    places = {t.trial_id: (numbers[t.trial_id], _scaled(search, t.score)) for t in trials}
    _mark_trials(axes, search, places)
    if not trials:
        figures.message(axes, "no trial has ended yet")
    handles |= _handles(search)
    if trials:
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=4, columnspacing=1
        )


def _mark_trials(axes: Axes, search: Search, at: Mapping[str, tuple[float, float]]) -> None:
    """Marks the paper's choice and the best found where they stand."""
    for trial, style in ((search.paper, _PAPER), (search.best, _BEST)):
        if trial and trial.status == "completed" and trial.trial_id in at:
            axes.plot(*at[trial.trial_id], **style)


def _shades(count: int) -> list:
    """Colours from light to dark that differ in lightness alone for any colour vision."""
    return list(matplotlib.colormaps["cividis_r"](np.linspace(0.12, 1, count)))


def has_promotions(search: Search) -> bool:
    """Whether a trial went on with the weights of another one."""
    return any(trial.inherited for trial in search.trials)


def halving(search: Search, form: str = "svg") -> bytes:
    """Draws score against epochs; a line joins the trainings of a promoted configuration.

    Args:
        search: By Hyperband.
        form: "svg" or "png".

    Returns:
        The picture, coloured by bracket.
    """
    return _drawn(_WIDTH, 3.6, lambda figure: _halving(figure, search), form)


def _halving(figure: Figure, search: Search) -> None:
    axes = figure.subplots()
    brackets = sorted({-1 if trial.bracket is None else trial.bracket for trial in search.trials})
    colours = dict(zip(brackets, itertools.cycle(_BRACKETS), strict=False))
    markers = dict(zip(brackets, itertools.cycle("osv^P"), strict=False))
    axes.set_ylim(*_limits(search, search.trials))
    axes.set_xscale("log", base=2)
    for family in configurations(search.trials):
        family = [trial for trial in family if trial.status != "failed"]
        if not family:
            continue
        bracket = -1 if family[0].bracket is None else family[0].bracket
        done = [trial for trial in family if trial.status == "completed"]
        epochs = [trial.epochs for trial in done]
        scores = [_scaled(search, trial.score) for trial in done]
        promoted = len(done) > 1
        axes.plot(
            epochs,
            scores,
            color=colours[bracket],
            marker=markers[bracket],
            markersize=4.2,
            markeredgewidth=0,
            linewidth=1,
            alpha=0.9 if promoted else 0.45,
            zorder=3 if promoted else 2,
        )
        lost = [trial.epochs for trial in family if trial.status == "diverged"]
        edge = [_EDGE[search.direction]] * len(lost)
        axes.plot(lost, edge, "x", color=_INK, ms=4, transform=axes.get_xaxis_transform())
    places = {t.trial_id: (t.epochs, _scaled(search, t.score)) for t in search.trials}
    _mark_trials(axes, search, places)
    ticks = sorted({trial.epochs for trial in search.trials})
    if len(ticks) <= 8:
        axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="epochs trained, inherited ones included (log scale)", ylabel=label(search))
    axes.grid(True)
    handles = {
        "no bracket" if bracket < 0 else f"bracket {bracket}": Line2D(
            [], [], color=colours[bracket], marker=markers[bracket], markersize=4.2, linewidth=1
        )
        for bracket in brackets
    } | _handles(search)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)


def interaction(search: Search, effects: Effects, form: str = "svg") -> bytes:
    """Draws the mean score for every pair of levels of the two most important hyperparameters.

    Args:
        search: The search.
        effects: Of its trials, at least two.
        form: "svg" or "png".

    Returns:
        The picture. Unlike marginal effects these means are of the trials alone, unadjusted.
    """
    rows = len(effects.effects[0].levels)
    return _drawn(
        _WIDTH, 1.1 + 0.52 * rows, lambda figure: _interaction(figure, search, effects), form
    )


def _interaction(figure: Figure, search: Search, effects: Effects) -> None:
    axes = figure.subplots()
    down, across = effects.effects[:2]
    cells = {
        (row, column): [
            _scaled(search, effects.scores[trial.trial_id])
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
    axes.set_facecolor("#eeeeee")
    # The darkest fifth of the map would hide the text.
    axes.pcolormesh(
        np.ma.masked_invalid(means),
        cmap="Blues",
        vmin=low - 0.05 * span,
        vmax=high + 0.2 * span,
        edgecolor="white",
        linewidth=1.5,
    )
    digits = 1 if is_share(search.objective.removeprefix("val_")) else 3
    for (row, column), scores in cells.items():
        at = (column + 0.5, row + 0.5)
        if not scores:
            axes.annotate("not tried", at, ha="center", va="center", fontsize=7, color=_GREY)
            continue
        dark = (means[row, column] - low) / span > 0.6
        colour = "white" if dark else _INK
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
    axes.set_title(f"mean {label(search)}", weight="normal")


def fold_against_held_out(search: Search, form: str = "svg") -> bytes:
    """Draws accuracy on the scored fold against accuracy on the held-out images.

    Args:
        search: Under the paper protocol.
        form: "svg" or "png".

    Returns:
        The picture, with the diagonal on which a fold would say what held-out images say.
    """
    return _drawn(4.4, 4.3, lambda figure: _fold(figure, search), form)


def _fold(figure: Figure, search: Search) -> None:
    axes = figure.subplots()
    trials = search.held_out
    at = {
        trial.trial_id: (
            100 * trial.metrics["val_accuracy"],
            100 * trial.metrics["held_out_accuracy"],
        )
        for trial in trials
    }
    x, y = np.array(list(at.values())).T
    ends = min(x.min(), y.min()), max(x.max(), y.max())
    pad = max(0.5, 0.05 * (ends[1] - ends[0]))
    ends = ends[0] - pad, min(ends[1] + pad, 101)
    axes.plot(ends, ends, color="#999999", linewidth=0.8, zorder=1)
    axes.plot(x, y, "o", color=_TRIAL, alpha=0.45, ms=4.5, mew=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("accuracy on the scored fold (trained on), %")
    axes.set_ylabel("accuracy on the held-out images, %")
    axes.grid(True)
    honest = trials[int(y.argmax())]
    axes.plot(*at[honest.trial_id], "o", mfc="none", mec=_INK, mew=1.2, ms=10, zorder=5)
    _mark_trials(axes, search, at)
    handles = _handles(search)
    handles.pop("diverged", None)
    ring = Line2D([], [], marker="o", mfc="none", mec=_INK, mew=1.2, ms=8, linewidth=0)
    handles = {
        "a trial": _dot(_TRIAL),
        **{("best by the fold" if k == "best found" else k): v for k, v in handles.items()},
        "best by held-out images": ring,
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
