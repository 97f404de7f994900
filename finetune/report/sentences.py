"""What a search's page and the terminal say in words."""

import math
from collections.abc import Mapping

from finetune.report import selection
from finetune.report.figure_parts import metric as objective_metric
from finetune.report.figure_parts import named
from finetune.report.findings import Findings
from finetune.report.selection import Cost, Optimism
from finetune.search import trials
from finetune.search.trials import Search, Trial, Value, described
from replication.drawing import shown
from replication.measures import class_figures
from replication.measures.intervals import Estimate


def score(search: Search, value: float, unit: bool = True) -> str:
    """Writes a score, for example '93.4 %'."""
    if not math.isfinite(value):
        return "none"
    share = objective_metric(search).percent
    return shown.number(value, share) + ("\u00a0%" if share and unit else "")


def interval(search: Search, low: float, high: float) -> str:
    """Writes the interval of a score, for example '[90.1, 95.2]'."""
    return shown.interval(low, high, objective_metric(search).percent)


def gap(metric: str, difference: Estimate) -> str:
    """Best minus another one: points of percent, or three decimals of a loss."""
    if metric != "loss":
        ends = shown.points_interval(difference.low, difference.high)
        return f"{shown.points(difference.value)} {ends}"
    ends = shown.interval(difference.low, difference.high, percent=False)
    return f"{difference.value:+.3f} {ends}".replace("-", "−")


def percent(value: float) -> str:
    """Writes a share, for example '93.4 %'; NaN is not defined."""
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
    if outcome.first:
        if search.executions > 1:
            text += f"; the first one {score(search, outcome.first.value)}"
        ends = interval(search, outcome.first.low, outcome.first.high)
        text += f" {ends}, {outcome.over}"
    if outcome.metric == "hsil_plus_sensitivity":
        text += f"; {beside_sensitivity(search, best)}"
    return f"{text}."


def beside_sensitivity(search: Search, trial: Trial) -> str:
    """The specificity that a trial's sensitivity must not stand without, in words."""
    value = trial.metrics.get("val_hsil_plus_specificity", math.nan)
    said = score(search, value) if math.isfinite(value) else "unknown, as it was not recorded"
    words = named(search, "hsil_plus_specificity").words
    return f"at {'an' if words.startswith('HSIL') else 'a'} {words} of {said}"


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
            f"{gap(metric, difference)} points of {named(search, metric).words}"
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
        f"The best by the held-out images themselves reaches {percent(cost.honest_held_out)} "
        "there, which flatters, as they chose it"
    )
    if math.isfinite(cost.honest_expected):
        honest += f"; without that, about {percent(cost.honest_expected)}"
    order = "not defined"
    if math.isfinite(cost.correlation):
        order = f"{cost.correlation:.2f}".replace("-", "−")
    return [
        "What the defect hides: trained and scored on the same images, the best by the fold "
        f"reaches an accuracy of {percent(cost.fold)} there and {percent(cost.held_out)} on the "
        f"held-out images, a gap of {gap} points {ends}.",
        f"{honest}.",
        f"{cost.saturated:,} of {shown.plural(cost.count, 'configuration')} reach "
        f"{100 * selection.SATURATED:.1f}\u00a0% or more on the fold"
        + (", which cannot choose among them" if cost.saturated > 1 else "")
        + f". Rank correlation of fold and held-out images over the configurations: {order}.",
    ]
