"""What follows from the trials of a search."""

import dataclasses
import functools
from collections.abc import Mapping

from finetune.report import effects, selection
from finetune.report.effects import Effects
from finetune.report.figure_parts import named
from finetune.report.selection import BesideThePaper, Cost, Optimism
from finetune.search.trials import Answers, Search
from replication.drawing import shown
from replication.measures import evaluation
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Findings:
    """What follows from the trials of a search.

    Attributes:
        effects: The marginal effects.
        metric: What the bootstrap compares: the objective, without its 'val_'.
        words: What `metric` is called.
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
    words: str
    over: str
    first: Estimate | None
    differences: Mapping[str, Estimate]
    beside: BesideThePaper | None
    optimism: Optimism | None
    cost: Cost | None

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
        words=named(search, metric).words,
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
