"""What a search leaves behind: one page, `search.csv`, and figures."""

import functools
import json
import math
from pathlib import Path
from typing import Any

from finetune.report import effect_figures, figures
from finetune.report.answer import answer
from finetune.report.effects import Effects
from finetune.report.figure_parts import METRICS, label, named, scored_paper
from finetune.report.findings import Findings, findings
from finetune.report.sentences import gap, interval, score, sentences
from finetune.search import trials
from finetune.search.trials import Search, Trial, described, worded
from replication.drawing import pages, shown
from replication.runs.directory import RunDirectory
from tfds_pap import files

__all__ = ["Findings", "Search", "best_rows", "findings", "score", "sentences", "write"]

#: Trials in the table of the best.
_BEST = 10

#: With more hyperparameters a configuration is written in one column.
_MOST_COLUMNS = 6


def write(run: RunDirectory, search: Search) -> Path:
    """Writes `report.html`, `search.csv` and `figures/*.png`.

    Args:
        run: The search directory; its manifest holds `source`, `announcement`, `environment` and
            perhaps `audit` (data set -> {"line": str}).
        search: Finished or not; perhaps without a trial.

    Returns:
        The page; it loads nothing from outside.

    Raises:
        PapError: This is no run directory.
        ValueError: As `findings`.
    """
    manifest = run.manifest()
    outcome = findings(search)
    trials.write_csv(
        run.path / "search.csv",
        search.trials,
        search.direction,
        source=str(manifest.get("source", "unknown")),
    )
    figures.write(run.path / "figures", search, outcome.effects)
    page = pages.template("finetune.report", "search_report.html.j2").render(
        search=search,
        outcome=outcome,
        announcement=pages.announcement(manifest),
        environment=manifest.get("environment", {}),
        audit_page=pages.beside(run.path, "audit.html"),
        audit=[entry["line"] for entry in manifest.get("audit", {}).values()],
        label=label(search),
        objective=outcome.words,
        answer=answer(search, outcome),
        paper_scored=scored_paper(search),
        sentences=sentences(search, outcome),
        design=_design(outcome.effects),
        methods=_methods(outcome),
        figures={name: shown.svg(picture) for name, picture in _pictures(search, outcome).items()},
        panels=[
            (effect, shown.svg(effect_figures.marginal_effect(search, outcome.effects, effect)))
            for effect in outcome.effects.effects
        ],
        names=_columns(search),
        best=best_rows(search, outcome),
        every=_every_row(search),
        metrics=_metrics(search),
        score=functools.partial(score, search),
        interval=functools.partial(interval, search),
        described=described,
        shown=trials.shown,
        worded=worded,
        duration=pages.duration,
        directory=run.path,
        details=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    return path


def _pictures(search: Search, outcome: Findings) -> dict[str, bytes]:
    pictures = {"history": figures.history(search)}
    if len(outcome.effects.effects) > 1:
        pictures["interaction"] = effect_figures.interaction(search, outcome.effects)
    if figures.has_promotions(search):
        pictures["halving"] = figures.halving(search)
    if outcome.cost:
        pictures["fold"] = figures.fold_against_held_out(search)
    return pictures


def _design(marginal: Effects) -> list[str]:
    """How the marginal effects were computed, in words."""
    if not marginal.effects:
        return []
    if marginal.balanced:
        how = [
            "Every combination was tried equally often, so the mean of a level is its main effect, "
            "and the main effects share out the variance of the score."
        ]
    else:
        adjusted = len(marginal.adjusted_for) == len(marginal.effects)
        names = (
            "all others" if adjusted else ", ".join(map(worded, marginal.adjusted_for)) or "none"
        )
        how = [
            "Combinations were not tried equally often, so raw means would mix the effects. Means "
            "are adjusted by an additive model (least squares on the levels) for these "
            f"hyperparameters: {names}."
            + ("" if adjusted else " There are too few trials to adjust for more."),
            "Shares are what remains after what levels drawn at random would reach by chance; they "
            "need not add up to 100 %.",
        ]
    if math.isfinite(marginal.unexplained):
        how.append(
            f"Main effects leave {100 * marginal.unexplained:.0f} % of the variance: interactions, "
            "and the chance of training."
        )
    if any(trial.inherited for trial in marginal.trials) or marginal.brackets:
        how.append(
            "Hyperband promotes by score, so that promoted trials are no fair sample. Each "
            "configuration counts as it stood before any promotion, after few epochs in most "
            "brackets, and brackets are adjusted for. What learns slowly looks worse here than it "
            "is after full training."
        )
    if marginal.diverged:
        how.append(f"Diverged trials ({marginal.diverged:,}) count like the worst completed one.")
    return how


def _methods(outcome: Findings) -> list[str]:
    methods = {}
    if outcome.first:
        methods["score of the best"] = outcome.first.method
    for difference in [*outcome.differences.values()][:1]:
        methods["differences"] = difference.method
    if outcome.optimism:
        methods["optimism"] = outcome.optimism.method
    if outcome.cost:
        methods["gap between fold and held-out images"] = outcome.cost.optimism.method
    return [f"{name}: {method}" for name, method in methods.items()]


def _columns(search: Search) -> list[str]:
    """The hyperparameters that get a column each; none where there are too many."""
    names = trials.names(search.trials)
    return names if len(names) <= _MOST_COLUMNS else []


def _metrics(search: Search) -> dict[str, str]:
    """Further figures that the trials have, and their headings."""
    headings = {"held_out_accuracy": "held-out accuracy, %"}
    for name in METRICS:
        metric = named(search, name)
        headings[f"val_{name}"] = metric.words + (", %" if metric.percent else "")
    have = {name for trial in search.trials for name in trial.metrics}
    return {
        name: heading
        for name, heading in headings.items()
        if name in have and name != search.objective
    }


def _row(search: Search, trial: Trial, place: int | None) -> dict[str, Any]:
    metrics = {}
    for name in _metrics(search):
        value = trial.metrics.get(name, math.nan)
        metrics[name] = shown.number(value, name != "val_loss") if math.isfinite(value) else "–"
    done = trial.status == "completed"
    return {
        "place": place,
        "trial": trial,
        # The score of a trial that diverged is a mark, no measurement.
        "score": score(search, trial.score, unit=False) if done else trial.status,
        "metrics": metrics,
        "epochs": f"{trial.best_epoch} of {trial.epochs}" if done else str(trial.epochs),
        "paper": trial is search.paper,
        "gap": "",
        "apart": False,
        "promoted": "",
    }


def best_rows(search: Search, outcome: Findings) -> list[dict[str, Any]]:
    """The ten best and, where it is none of them, the paper's choice; none if all diverged.

    Args:
        search: The search.
        outcome: What follows from its trials, from `findings`.
    """
    if search.best is None:
        return []
    rows = []
    for place, trial in enumerate(search.ranked, start=1):
        if trial.status == "failed" or (place > _BEST and trial is not search.paper):
            continue
        row = _row(search, trial, place)
        if difference := outcome.differences.get(trial.trial_id):
            row["gap"] = gap(outcome.metric, difference)
            row["apart"] = difference.told_from_zero
        rows.append(row)
    return rows


def _every_row(search: Search) -> list[dict[str, Any]]:
    replaced = trials.superseded(search.trials)
    rows = [_row(search, trial, place) for place, trial in enumerate(search.ranked, start=1)]
    rest = sorted(
        (trial for trial in search.trials if trial.trial_id in replaced), key=lambda t: t.order
    )
    return rows + [
        {**_row(search, trial, None), "promoted": replaced[trial.trial_id]} for trial in rest
    ]
