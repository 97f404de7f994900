"""The figures of a hyperparameter search: history, halving, folds, and those of its effects.

SVG for the page, PNG for a readme, in the style of `replication.drawing.figures`.
"""

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from finetune.report import effect_figures, figure_parts
from finetune.report.effects import Effects
from finetune.search.trials import Search, configurations
from replication.drawing import figures, palette
from tfds_pap import files

#: Colours of Hyperband's brackets.
_BRACKETS = (palette.BLUE, palette.PINK, palette.AMBER, palette.BLACK, palette.SKY)


def write(directory: Path, search: Search, effects: Effects) -> list[Path]:
    """Writes every figure that the search has something for, as PNG.

    Args:
        directory: Where to; the files are `history.png` and, where there are enough trials,
            `effects.png`, `interaction.png`, `halving.png` and `fold.png`.
        search: The search.
        effects: The marginal effects of its trials.

    Returns:
        The paths.
    """
    drawings = {"history": functools.partial(history, search)}
    if effects.effects:
        drawings["effects"] = functools.partial(effect_figures.marginal_effects, search, effects)
    if len(effects.effects) > 1:
        drawings["interaction"] = functools.partial(effect_figures.interaction, search, effects)
    if has_promotions(search):
        drawings["halving"] = functools.partial(halving, search)
    if search.held_out:
        drawings["fold"] = functools.partial(fold_against_held_out, search)
    for name, draw in drawings.items():
        files.write_atomically(directory / f"{name}.png", draw(form="png"))
    return [directory / f"{name}.png" for name in drawings]


def history(search: Search, form: str = "svg") -> bytes:
    """Draws the score of every trial in the order in which they ended, and the best so far.

    Args:
        search: The search; perhaps without a trial.
        form: "svg" or "png".

    Returns:
        The picture. Hyperband's trials are coloured by their epochs.
    """
    return figure_parts.drawn(
        figure_parts.WIDTH, 3.1, lambda figure: _history(figure, search), form
    )


def _history(figure: Figure, search: Search) -> None:
    axes = figure.subplots()
    trials = sorted(search.trials, key=lambda trial: trial.order)
    numbers = {trial.trial_id: n for n, trial in enumerate(trials, start=1)}
    done = [trial for trial in trials if trial.status == "completed"]
    lost = [numbers[trial.trial_id] for trial in trials if trial.status == "diverged"]
    axes.set_xlabel("trial, in the order in which they ended")
    axes.set_ylabel(figure_parts.label(search))
    axes.set_ylim(*figure_parts.limits(search, trials))
    last = max(search.planned or 0, len(trials), 1)
    pad = max(0.7, 0.015 * last)
    axes.set_xlim(1 - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, axis="y")
    handles: dict[str, Line2D] = {}
    budgets = sorted({trial.epochs for trial in done}) if has_promotions(search) else [None]
    colours = palette.shades(len(budgets)) if len(budgets) > 1 else [figure_parts.TRIAL]
    for budget, colour in zip(budgets, colours, strict=True):
        some = [trial for trial in done if budget in (None, trial.epochs)]
        if some:
            x = [numbers[trial.trial_id] for trial in some]
            y = [figure_parts.scaled(search, trial.score) for trial in some]
            axes.plot(x, y, "o", color=colour, ms=4, mew=0, alpha=0.8)
            handles["a trial" if budget is None else f"{budget} epochs"] = figure_parts.dot(colour)
    if done:
        sign = 1 if search.direction == "max" else -1
        best = sign * np.maximum.accumulate(
            [sign * figure_parts.scaled(search, t.score) for t in done]
        )
        steps = [numbers[trial.trial_id] for trial in done]
        axes.step(
            [*steps, len(trials)],
            [*best, best[-1]],
            where="post",
            color=figure_parts.GREEN,
            linewidth=1.3,
        )
        handles["best so far"] = Line2D([], [], color=figure_parts.GREEN, linewidth=1.3)
    edge = [figure_parts.EDGE[search.direction]] * len(lost)
    axes.plot(lost, edge, "x", color=figure_parts.INK, ms=4, transform=axes.get_xaxis_transform())
    places = {
        t.trial_id: (numbers[t.trial_id], figure_parts.scaled(search, t.score)) for t in trials
    }
    _mark_trials(axes, search, places)
    if not trials:
        figures.message(axes, "no trial has ended yet")
    handles |= figure_parts.handles(search)
    if trials:
        figures.legend(figure, handles.values(), handles.keys())


def _mark_trials(axes: Axes, search: Search, at: Mapping[str, tuple[float, float]]) -> None:
    """Marks the paper's choice and the best found where they stand."""
    for trial, style in ((search.paper, figure_parts.PAPER), (search.best, figure_parts.BEST)):
        if trial and trial.status == "completed" and trial.trial_id in at:
            axes.plot(*at[trial.trial_id], **style)


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
    return figure_parts.drawn(
        figure_parts.WIDTH, 3.6, lambda figure: _halving(figure, search), form
    )


def _halving(figure: Figure, search: Search) -> None:
    axes = figure.subplots()
    brackets = sorted({-1 if trial.bracket is None else trial.bracket for trial in search.trials})
    colours = dict(zip(brackets, itertools.cycle(_BRACKETS), strict=False))
    markers = dict(zip(brackets, itertools.cycle("osv^P"), strict=False))
    axes.set_ylim(*figure_parts.limits(search, search.trials))
    axes.set_xscale("log", base=2)
    for family in configurations(search.trials):
        family = [trial for trial in family if trial.status != "failed"]
        if not family:
            continue
        bracket = -1 if family[0].bracket is None else family[0].bracket
        done = [trial for trial in family if trial.status == "completed"]
        epochs = [trial.epochs for trial in done]
        scores = [figure_parts.scaled(search, trial.score) for trial in done]
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
        edge = [figure_parts.EDGE[search.direction]] * len(lost)
        axes.plot(
            lost, edge, "x", color=figure_parts.INK, ms=4, transform=axes.get_xaxis_transform()
        )
    places = {t.trial_id: (t.epochs, figure_parts.scaled(search, t.score)) for t in search.trials}
    _mark_trials(axes, search, places)
    ticks = sorted({trial.epochs for trial in search.trials})
    if len(ticks) <= 8:
        axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(
        xlabel="epochs trained, inherited ones included (log scale)",
        ylabel=figure_parts.label(search),
    )
    axes.grid(True)
    handles = {
        "no bracket" if bracket < 0 else f"bracket {bracket}": Line2D(
            [], [], color=colours[bracket], marker=markers[bracket], markersize=4.2, linewidth=1
        )
        for bracket in brackets
    } | figure_parts.handles(search)
    figures.legend(figure, handles.values(), handles.keys())


def fold_against_held_out(search: Search, form: str = "svg") -> bytes:
    """Draws accuracy on the scored fold against accuracy on the held-out images.

    Args:
        search: Under the paper protocol.
        form: "svg" or "png".

    Returns:
        The picture, with the diagonal on which a fold would say what held-out images say.
    """
    return figure_parts.drawn(4.4, 4.3, lambda figure: _fold(figure, search), form)


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
    axes.plot(ends, ends, color=palette.GREY, linewidth=0.8, zorder=1)
    axes.plot(x, y, "o", color=figure_parts.TRIAL, alpha=0.45, ms=4.5, mew=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("accuracy on the scored fold (trained on), %")
    axes.set_ylabel("accuracy on the held-out images, %")
    axes.grid(True)
    honest = trials[int(y.argmax())]
    axes.plot(*at[honest.trial_id], "o", mfc="none", mec=figure_parts.INK, mew=1.2, ms=10, zorder=5)
    _mark_trials(axes, search, at)
    handles = figure_parts.handles(search)
    handles.pop("diverged", None)
    ring = Line2D([], [], marker="o", mfc="none", mec=figure_parts.INK, mew=1.2, ms=8, linewidth=0)
    handles = {
        "a trial": figure_parts.dot(figure_parts.TRIAL),
        **{("best by the fold" if k == "best found" else k): v for k, v in handles.items()},
        "best by held-out images": ring,
    }
    figures.legend(figure, handles.values(), handles.keys())
