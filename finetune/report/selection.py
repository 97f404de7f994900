"""What the choice of a search is worth, judged on what all trials said about the same images.

Which other configurations could as well have been chosen, how much better the best of many looks
than it is, and, where the scored images were trained on, what that cost.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from finetune.search.trials import Answers, Direction, Search, Trial
from replication.measures import class_figures, shares
from replication.measures.intervals import Estimate, Interval, group_weights, resampling_units

#: From here up a score leaves nothing to choose by.
SATURATED = 0.995

#: Weights held at a time: 4 million float64 are 32 MB.
_CHUNK_ENTRIES = 4_000_000


@dataclasses.dataclass(frozen=True)
class BesideThePaper:
    """The best configuration found, and the one that the paper's authors chose.

    Attributes:
        paper: The trial at the paper's point.
        place: Its rank.
        scored: Number of configurations that did not fail.
        differences: By metric, best minus paper on the same images; empty without predictions.
    """

    paper: Trial
    place: int
    scored: int
    differences: Mapping[str, Estimate]

    @property
    def told_apart(self) -> bool:
        """Whether the interval of a difference lies on one side of 0."""
        return any(estimate.told_from_zero for estimate in self.differences.values())


def beside_the_paper(
    search: Search, answers: Answers | None, metrics: Sequence[str] = ("accuracy", "macro_f1")
) -> BesideThePaper | None:
    """Sets the best configuration found beside the paper's.

    Args:
        search: Finished or not.
        answers: On the images that chose, if known.
        metrics: In which the two are compared.

    Returns:
        None where the paper's point was not tried or has failed, or no trial was completed.
    """
    paper = search.paper
    if paper is None or search.best is None:
        return None
    gaps: dict[str, Estimate] = {}
    if answers and paper is not search.best:
        rows = [answers.row(search.best), answers.row(paper)]
        if None not in rows:
            # The best is the best of all of them, also where it stands beside one.
            gaps = {
                metric: differences(
                    answers, search.best, metric, to=paper, resamples=search.resamples
                )[paper.trial_id]
                for metric in metrics
            }
    place = search.ranked.index(paper) + 1
    return BesideThePaper(paper, place, len(search.scored), gaps)


def differences(
    answers: Answers,
    best: Trial,
    metric: str,
    *,
    to: Trial | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """A configuration minus each other one, with intervals that hold for all of them at once.

    The images that chose the best of many are those that it is compared on. So each resample
    chooses again: it tells how far the best and the worst of configurations that are equally good
    lie apart by chance, and no difference below 95 % of that counts. This holds whichever
    configuration was chosen, and is never narrower than the interval of two configurations alone.

    Source: J. W. Tukey's range, by resampling (P. H. Westfall and S. S. Young, "Resampling-based
    multiple testing", 1993, section 2.3); the comparison with the best as in J. C. Hsu, "Multiple
    comparisons" (1996), chapter 4.

    Args:
        answers: Of all configurations that the choice was among.
        best: The configuration that the others are set beside.
        metric: See `Answers.figures`.
        to: Which other one alone, counting the choice among all; None takes all.
        resamples: Number of resamples, of groups or, where these are unknown, of images.
        seed: Seed of the resamples; one draw serves all differences.

    Returns:
        By id of the other trial; none where `best` has no predictions.
    """
    row = answers.row(best)
    others = [n for n, trial in enumerate(answers.trials) if n != row]
    if row is None or not others:
        return {}
    if to is not None:
        others = [n for n in others if answers.trials[n].trial_id == to.trial_id]
    once = answers.figures(metric, np.ones((1, len(answers.labels))))[0]
    reach, over = _range_by_chance(answers, metric, once, resamples, seed)
    words = f"for {len(answers.trials)} configurations at once: range of equal ones by {over}"
    gaps = {}
    for other in others:
        gap, low, high = float(once[row] - once[other]), math.nan, math.nan
        method = "no interval: no spread can be told"
        if reach > 0:
            alone = _alone(answers, metric, row, other)
            low = float(np.fmin(gap - reach, alone.low))
            high = float(np.fmax(gap + reach, alone.high))
            method = words
        gaps[answers.trials[other].trial_id] = Estimate(gap, low, high, len(answers.labels), method)
    return gaps


def _range_by_chance(
    answers: Answers, metric: str, once: np.ndarray, resamples: int, seed: int
) -> tuple[float, str]:
    """How far equally good configurations lie apart in 95 % of resamples; NaN from few groups."""
    units, kind = resampling_units(answers.groups)
    count = int(units.max()) + 1
    rows = max(1, _CHUNK_ENTRIES // len(units))
    ranges = [
        np.ptp(answers.figures(metric, weights[:, units]) - once, axis=1)
        for weights in group_weights(count, resamples, seed, rows=rows)
    ]
    over = f"resampling of {count} {kind}, {resamples} times"
    if not ranges:
        return math.nan, over
    return float(np.percentile(np.concatenate(ranges), 95)), over


def _alone(answers: Answers, metric: str, row: int, other: int) -> Interval:
    """The interval of two configurations alone, which few unlike answers make wide."""
    labels, classes = answers.labels, len(answers.classes.names)
    first, second = (answers.predicted[[n]] for n in (row, other))
    if metric == "loss":
        return Interval(math.nan, math.nan, "")
    if metric == "macro_f1":
        present = np.bincount(labels, minlength=classes) > 0
        figures = class_figures.mean_figures(present, None, [metric])
        return class_figures.difference_intervals(
            labels, first, second, answers.groups, figures, classes=classes, resamples=0
        )[metric]
    counted = np.ones(len(labels), bool)
    hits = first == labels, second == labels
    if metric == "hsil_plus_sensitivity":
        counted, severe = answers.severe
        hits = np.isin(first, severe), np.isin(second, severe)
    groups = list(itertools.compress(answers.groups, counted))
    return shares.difference(hits[0][:, counted], hits[1][:, counted], groups)


@dataclasses.dataclass(frozen=True)
class Optimism:
    """How much better the best of many looks than it is.

    Attributes:
        expected: What choosing adds to the score of the chosen one, on average; 0 or more but for
            chance. Where low is best, what it takes off.
        again: Share of the draws in which the best configuration was chosen again.
        chosen: How many different configurations were chosen in some draw.
        method: How it was computed, in words.
    """

    expected: float
    again: float
    chosen: int
    method: str


def selection_optimism(
    answers: Answers,
    best: Trial,
    metric: str,
    direction: Direction = "max",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Optimism | None:
    """Repeats the choice: draws images, chooses by them, and scores on the images left out.

    Source of the scheme: B. Efron and R. Tibshirani, "Improvements on cross-validation: the .632+
    bootstrap method", J. Am. Stat. Assoc. 92 (1997) 548-560, whose leave-one-out bootstrap is
    applied to the choice instead of the fit. A draw with replacement has twice the sampling
    variance of the images themselves, and the optimism of choosing among equals grows with its
    root; so the mean gap is divided by the root of 2 (of 2 - 1/units). Among equals this is exact,
    as it is (0) where one configuration is clearly best; in between it is somewhat too large.

    Args:
        answers: Of all configurations, on the images that chose.
        best: The one that was chosen.
        metric: See `Answers.figures`.
        direction: Whether "max" or "min" is best.
        resamples: Number of draws; groups are drawn whole where all are known.
        seed: Seed of the draws.

    Returns:
        None where there is nothing to choose or to draw: one configuration, or one group.
    """
    units, kind = resampling_units(answers.groups)
    count = int(units.max()) + 1
    if len(answers.trials) < 2 or count < 2:
        return None
    # Of equals the cheaper wins, then the earlier, as in `trials.rank`.
    order = sorted(
        range(len(answers.trials)),
        key=lambda n: (answers.trials[n].epochs, answers.trials[n].order),
    )
    answers, sign = answers.only(order), 1 if direction == "max" else -1
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ENTRIES // len(units))
    gaps, winners = [], []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)[:, units]
        inside = sign * answers.figures(metric, drawn.astype(float))
        outside = sign * answers.figures(metric, (drawn == 0).astype(float))
        # A draw without a class has no macro F1, of any configuration; `method` counts them.
        defined = np.isfinite(inside).all(axis=1) & np.isfinite(outside).all(axis=1)
        inside, outside = inside[defined], outside[defined]
        winner = inside.argmax(axis=1)
        at = np.arange(len(winner)), winner
        gaps.append(inside[at] - outside[at])
        winners.append(winner)
    gap, won = np.concatenate(gaps), np.concatenate(winners)
    if len(gap) < resamples / 2:
        return None
    row, lacking = answers.row(best), resamples - len(gap)
    without = f"; {lacking} that lack a class say nothing" if lacking else ""
    return Optimism(
        expected=float(gap.mean() / math.sqrt(2 - 1 / count)),
        again=float((won == row).mean()) if row is not None else math.nan,
        chosen=len(np.unique(won)),
        method=f"{len(gap)} draws of {count} {kind}, each scored on what it left out{without}",
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What it cost to score on images that were trained on; all figures are accuracies.

    Attributes:
        chosen: The best by the scored fold.
        fold: Its accuracy there.
        held_out: Its accuracy on the held-out images.
        optimism: Fold minus held out, with its interval; NaN ends without predictions.
        honest: The best by the held-out images.
        honest_held_out: Its accuracy there, which flatters: these images chose it.
        honest_expected: The same less the optimism of that choice; NaN without predictions.
        correlation: Spearman's, of fold and held out over the configurations; NaN where one of
            them does not vary.
        saturated: Configurations that reach `SATURATED` on the fold.
        count: Configurations with both figures.
    """

    chosen: Trial
    fold: float
    held_out: float
    optimism: Estimate
    honest: Trial
    honest_held_out: float
    honest_expected: float
    correlation: float
    saturated: int
    count: int


def cost_of_the_defect(
    search: Search, fold: Answers | None = None, held_out: Answers | None = None
) -> Cost | None:
    """What P5 paid for scoring on rows that it had trained on.

    Args:
        search: Under the paper protocol.
        fold: On the images that were scored, if known.
        held_out: On the validation folder, if known.

    Returns:
        None where no completed trial has both 'val_accuracy' and 'held_out_accuracy'.
    """
    both = search.held_out
    if not both:
        return None
    scores = np.array([[t.metrics["val_accuracy"], t.metrics["held_out_accuracy"]] for t in both])
    chosen, honest = both[0], both[int(scores[:, 1].argmax())]
    constant = len(both) < 3 or (np.ptp(scores, axis=0) == 0).any()
    best_of_many = (
        selection_optimism(held_out, honest, "accuracy", resamples=search.resamples)
        if held_out
        else None
    )
    return Cost(
        chosen=chosen,
        fold=float(scores[0, 0]),
        held_out=float(scores[0, 1]),
        optimism=_fold_optimism(chosen, float(scores[0] @ [1, -1]), fold, held_out, search),
        honest=honest,
        honest_held_out=float(scores[:, 1].max()),
        honest_expected=float(scores[:, 1].max())
        - (best_of_many.expected if best_of_many else math.nan),
        correlation=math.nan if constant else float(stats.spearmanr(*scores.T).statistic),
        saturated=int((scores[:, 0] >= SATURATED).sum()),
        count=len(both),
    )


def _fold_optimism(
    chosen: Trial, value: float, fold: Answers | None, held_out: Answers | None, search: Search
) -> Estimate:
    """Fold minus held out of one trial; both sets of images are drawn together."""
    sides = [(a, a.row(chosen)) for a in (fold, held_out) if a is not None]
    if len(sides) < 2 or any(row is None for _, row in sides):
        return Estimate(value, math.nan, math.nan, 0, "no interval without predictions")
    measured, kinds = [], []
    for answers, row in sides:
        units, kind = resampling_units(answers.groups)
        right, every = answers.predicted[row] == answers.labels, np.ones(len(units), bool)
        measured.append(shares.share_by_unit(*shares.by_unit(right, every, units)))
        kinds.append(kind)
    count = sum(one.count for one in measured)
    if not all(one.has_interval for one in measured):
        return Estimate(value, math.nan, math.nan, count, "no interval: one side is of one group")
    method = f"{shares.method(measured[0], kinds[0])}; both sides combined as independent"
    return Estimate(value, *shares.independent_difference(*measured), count, method)
