"""What a search leaves behind: one page, `search.csv`, and figures."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.report import effect_figures, effects, figures, selection
from finetune.report.effects import Effects
from finetune.report.figure_parts import METRICS, label, scored_paper
from finetune.report.figure_parts import metric as objective_metric
from finetune.report.selection import BesideThePaper, Cost, Optimism
from finetune.search import trials
from finetune.search.trials import Answers, Search, Trial, Value, described, worded
from replication.drawing import pages, shown
from replication.measures import class_figures, evaluation
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from tfds_pap import files

__all__ = ["Findings", "Search", "best_rows", "findings", "score", "sentences", "write"]

#: Trials in the table of the best.
_BEST = 10

#: With more hyperparameters a configuration is written in one column.
_MOST_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Findings:
    """What follows from the trials of a search.

    Attributes:
        effects: The marginal effects.
        metric: What the bootstrap compares: the objective, without its 'val_'.
        over: How many images chose, in words; "" without predictions.
        first: `metric` of the best trial's first execution on these images; None without
            predictions.
        differences: By id of each other configuration, best minus that one in `metric`.
        beside: The paper's point beside the best found, if it was tried.
        optimism: What choosing the best adds to its score; None under the paper protocol, where
            memory adds more, and where it is not known.
        cost: What the defect of P5 cost; under the paper protocol.
    """

    effects: Effects
    metric: str
    over: str
    first: Estimate | None
    differences: Mapping[str, Estimate]
    beside: BesideThePaper | None
    optimism: Optimism | None
    cost: Cost | None

    @property
    def words(self) -> str:
        """What `metric` is called."""
        return METRICS[self.metric].words

    @property
    def undecided(self) -> int:
        """Configurations that these images cannot tell from the best one."""
        return sum(not difference.told_from_zero for difference in self.differences.values())


@functools.lru_cache(maxsize=2)
def findings(search: Search) -> Findings:
    """Reads the predictions of all trials and computes what the page and the terminal show.

    Args:
        search: Finished or not.

    Raises:
        ValueError: A predictions file is not readable, or trials were scored on different images.
    """
    scored = [
        (trial, predictions)
        for trial in search.scored
        if (predictions := trial.predictions()) is not None
    ]
    tune, held_out = Answers.align(scored, "tune"), Answers.align(scored, "test")
    best, metric = search.best, search.objective.removeprefix("val_")
    paper = search.protocol == "paper"
    first, optimism, differences = None, None, {}
    if tune is not None and best is not None and tune.row(best) is not None:
        predictions = next(of for trial, of in scored if trial is best).select("tune")
        first = _estimate(predictions, metric, search.resamples)
        differences = selection.differences(tune, best, metric, resamples=search.resamples)
        if not paper:
            optimism = selection.selection_optimism(
                tune, best, metric, search.direction, resamples=search.resamples
            )
    return Findings(
        effects=effects.marginal_effects(
            search.trials, search.direction, at_random=search.tuner != "bayesian"
        ),
        metric=metric,
        over=_over(tune, search.unit) if tune is not None else "",
        first=first,
        differences=differences,
        beside=selection.beside_the_paper(search, tune),
        optimism=optimism,
        cost=selection.cost_of_the_defect(search, tune, held_out) if paper else None,
    )


def _estimate(predictions: Predictions, metric: str, resamples: int) -> Estimate:
    if metric == "loss":
        return evaluation.evaluate(predictions, resamples=resamples)["log_loss"]
    s = evaluation.summarise_seeds([predictions], resamples=resamples)[metric]
    return Estimate(s.mean, s.low, s.high, s.count, s.method)


def _over(answers: Answers, unit: str) -> str:
    groups = len(set(answers.groups)) if all(answers.groups) else 0
    return shown.extent(len(answers.labels), groups, unit)


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
    lead, *others = sentences(search, outcome)
    page = pages.template("finetune.report", "search_report.html.j2").render(
        search=search,
        outcome=outcome,
        announcement=pages.announcement(manifest),
        environment=manifest.get("environment", {}),
        audit_page=pages.beside(run.path, "audit.html"),
        audit=[entry["line"] for entry in manifest.get("audit", {}).values()],
        label=label(search),
        objective=outcome.words,
        lead=lead,
        paper_scored=scored_paper(search),
        sentences=others,
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
        interval=functools.partial(_interval, search),
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


def score(search: Search, value: float, unit: bool = True) -> str:
    """Writes a score, for example '93.4 %'."""
    if not math.isfinite(value):
        return "none"
    share = objective_metric(search).percent
    return shown.number(value, share) + ("\u00a0%" if share and unit else "")


def _interval(search: Search, low: float, high: float) -> str:
    return shown.interval(low, high, objective_metric(search).percent)


def _gap(metric: str, difference: Estimate) -> str:
    """Best minus another one: points of percent, or three decimals of a loss."""
    if METRICS[metric].percent:
        ends = shown.points_interval(difference.low, difference.high)
        return f"{shown.points(difference.value)} {ends}"
    ends = shown.interval(difference.low, difference.high, percent=False)
    return f"{difference.value:+.3f} {ends}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%" if math.isfinite(value) else "not defined"


def sentences(search: Search, outcome: Findings) -> list[str]:
    """What a reader should take home, the most important sentence first.

    Args:
        search: The search.
        outcome: What follows from its trials, from `findings`.
    """
    lines = [_progress(search)]
    if search.best is None:
        return lines
    lines.insert(0, _best(search, search.best, outcome))
    if search.paper_values:
        lines.append(_paper(search, search.paper_values, outcome))
    if outcome.differences:
        others = shown.plural(len(outcome.differences), "other configuration")
        lines.append(
            f"{outcome.undecided:,} of the {others} cannot be told from the best one on these "
            f"images in {outcome.words}, counting that the same images chose the best of them all "
            "(95 % intervals for all configurations at once). Not told apart is not equal: these "
            "images do not decide."
        )
    if outcome.optimism:
        lines.append(_optimism(search, search.best, outcome.optimism))
    elif outcome.differences and outcome.cost is None:
        lines.append(
            "The best of many looks better than it is; by how much, these images do not say: too "
            "few draws leave every class on both sides."
        )
    if outcome.cost:
        lines += _cost(outcome.cost)
    beside_the_paper = outcome.beside.differences if outcome.beside else {}
    if "macro_f1" in (outcome.metric, *beside_the_paper):
        lines.append(class_figures.AT_CLASS_SHARES)
    return lines


def _progress(search: Search) -> str:
    count, planned = len(search.trials), search.planned
    if not count:
        return (
            f"None of {planned:,} trials has ended yet." if planned else "No trial has ended yet."
        )
    if planned is not None and count < planned:
        start = f"{count:,} of {planned:,} trials {'has' if count == 1 else 'have'} ended so far"
    else:
        start = f"{shown.plural(count, 'trial')} ended" + (
            ", all that were planned" if planned else ""
        )
    how = {
        status: sum(trial.status == status for trial in search.trials) for status in trials.STATUSES
    }
    if how["diverged"] or how["failed"]:
        start += ": " + ", ".join(
            f"{number:,} {status}" for status, number in how.items() if number
        )
    if len(search.ranked) < count:
        start += f"; they trained {shown.plural(len(search.ranked), 'configuration')}"
    return start + "."


def _best(search: Search, best: Trial, outcome: Findings) -> str:
    name = outcome.words
    images = "the images that were scored, which it was trained on"
    if search.protocol != "paper":
        images = "the tune images, which chose it"
    text = f"Best found: {described(best.values)}. {name[0].upper()}{name[1:]} on {images}"
    text += f": {score(search, best.score)}"
    if search.executions > 1:
        text += f", mean of {search.executions} trainings"
    if outcome.metric == "hsil_plus_sensitivity":
        text += f", at an HSIL+ specificity of {beside_sensitivity(search, best)}"
    if outcome.first:
        if search.executions > 1:
            text += f"; the first one {score(search, outcome.first.value)}"
        ends = _interval(search, outcome.first.low, outcome.first.high)
        text += f" {ends}, {outcome.over}"
    return f"{text}."


def beside_sensitivity(search: Search, trial: Trial) -> str:
    """The specificity of HSIL+ that a trial's sensitivity must not stand without."""
    value = trial.metrics.get("val_hsil_plus_specificity", math.nan)
    return score(search, value) if math.isfinite(value) else "unknown, as it was not recorded"


def _paper(search: Search, paper_values: Mapping[str, Value], outcome: Findings) -> str:
    values = described(paper_values)
    if outcome.beside is None:
        failed = trials.find(search.ranked, paper_values)
        return f"The paper's choice, {values}, {'failed' if failed else 'has not been tried'}."
    beside = outcome.beside
    if beside.paper is search.best:
        return "The best found is the paper's choice."
    if beside.paper.status == "diverged":
        return f"The paper's choice, {values}, diverged."
    text = (
        f"The paper's choice, {values}, is rank {beside.place:,} of {beside.scored:,} with "
        f"{score(search, beside.paper.score)}."
    )
    if beside.differences:
        gaps = " and ".join(
            f"{_gap(metric, difference)} points of {METRICS[metric].words}"
            for metric, difference in beside.differences.items()
        )
        verdict = "tell" if beside.told_apart else "cannot tell"
        text += (
            f" Best minus paper on the same images: {gaps}, counting that these images chose the "
            f"best; they {verdict} the two apart."
        )
    return text


def _optimism(search: Search, best: Trial, optimism: Optimism) -> str:
    sign = 1 if search.direction == "max" else -1
    # Below 0 by chance alone: choosing never takes from what it chooses by.
    added = max(0.0, optimism.expected)
    size = f"{100 * added:.1f} points" if objective_metric(search).percent else f"{added:.3f}"
    does = "adds" if search.direction == "max" else "takes off"
    text = f"The best of many looks better than it is: choosing on these images {does} about {size}"
    if search.executions == 1:
        expected = score(search, best.score - sign * added)
        text += f", so that {expected} is to be expected of other images like these"
    again = f"{100 * optimism.again:.0f} % of the draws of as many images would choose it again"
    return f"{text}. {again}; {shown.plural(optimism.chosen, 'configuration')} won some draw."


def _cost(cost: Cost) -> list[str]:
    gap = shown.points(cost.optimism.value)
    ends = shown.points_interval(cost.optimism.low, cost.optimism.high)
    honest = (
        f"The best by the held-out images themselves reaches {_percent(cost.honest_held_out)} "
        "there, which flatters, as they chose it"
    )
    if math.isfinite(cost.honest_expected):
        honest += f"; without that, about {_percent(cost.honest_expected)}"
    order = "not defined"
    if math.isfinite(cost.correlation):
        order = f"{cost.correlation:.2f}".replace("-", "−")
    return [
        "What the defect hides: trained and scored on the same images, the best by the fold "
        f"reaches an accuracy of {_percent(cost.fold)} there and {_percent(cost.held_out)} on the "
        f"held-out images, a gap of {gap} points {ends}.",
        f"{honest}.",
        f"{cost.saturated:,} of {shown.plural(cost.count, 'configuration')} reach "
        f"{100 * selection.SATURATED:.1f}\u00a0% or more on the fold"
        + (", which cannot choose among them" if cost.saturated > 1 else "")
        + f". Rank correlation of fold and held-out images over the configurations: {order}.",
    ]


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
    for name, metric in METRICS.items():
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
            row["gap"] = _gap(outcome.metric, difference)
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
