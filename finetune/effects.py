"""What a search says about its hyperparameters, and what its choice is worth.

A grid that was completed is a full factorial design, and its marginal means are the main effects of
the classical analysis of variance. Any other set of trials is unbalanced: a level may owe its mean
to the company that it was drawn in. Then an additive model of all hyperparameters is fitted by
least squares, and its marginal means are shown (S. R. Searle, F. M. Speed and G. A. Milliken,
"Population marginal means in the linear model: an alternative to least squares means", Am. Stat. 34
(1980) 216-221). On a balanced design they are the plain means, so one piece of code serves both.

The choice is judged on the predictions of all trials on the same images: which other configurations
could as well have been chosen, how much better the best of many looks than it is, and, where the
scored images were trained on, what that cost.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from finetune.trials import (
    Answers,
    Direction,
    Search,
    Trial,
    Value,
    configurations,
    equal,
    names,
    shown,
)
from replication.intervals import Estimate, percentile_bootstrap, resampling_units

#: Fewer trials say nothing about a hyperparameter.
LEAST_TRIALS = 4

#: A number with more different values, or with fewer trials at each of them, is cut into bins.
_MOST_LEVELS, _TRIALS_A_LEVEL = 6, 4

#: So few values are never binned, unless all trials differ.
_FEW_LEVELS = 3

#: A bin for every so many trials, from 2 to 4 of them.
_TRIALS_A_BIN = 8

#: A positive number that spans this factor is shown on a log scale.
_LOG_FROM = 10

#: An additive model needs so many trials for each of its coefficients.
_TRIALS_A_COEFFICIENT = 2

#: Of the intervals.
_CONFIDENCE = 0.95

#: From here up a score leaves nothing to choose by.
SATURATED = 0.995

#: Weights held at a time: 4 million float64 are 32 MB.
_CHUNK_ENTRIES = 4_000_000


@dataclasses.dataclass(frozen=True)
class Level:
    """A value of a hyperparameter, or a bin of its values.

    Attributes:
        label: The value, or the first and last value of the bin.
        count: Trials at it.
        diverged: How many of them diverged; they count like the worst completed trial.
        mean: Their marginal mean score.
        low: Lower end of its interval over trials; NaN for a single trial.
        high: Upper end of its interval over trials.
        best: The best score among them.
        start: The lowest value of a bin; NaN where the level is no bin.
        end: The highest value of a bin.
    """

    label: str
    count: int
    diverged: int
    mean: float
    low: float
    high: float
    best: float
    start: float = math.nan
    end: float = math.nan


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one hyperparameter does to the score.

    Attributes:
        name: Of the hyperparameter.
        kind: "choice", "number" or "log number".
        binned: Whether the levels are bins of a number.
        levels: In the order of their values.
        importance: Share of the variance of the score, 0..1.
        members: The trials at each level.
    """

    name: str
    kind: str
    binned: bool
    levels: tuple[Level, ...]
    importance: float
    members: tuple[tuple[Trial, ...], ...]

    @property
    def active(self) -> int:
        """Number of trials in which the hyperparameter is active: only these are compared."""
        return sum(level.count for level in self.levels)

    @property
    def gap(self) -> float:
        """Highest minus lowest mean of a level."""
        means = [level.mean for level in self.levels]
        return max(means) - min(means)

    def level_of(self, value: Value | None) -> int | None:
        """Number of the level that a value belongs to; None where there is none."""
        for number, level in enumerate(self.levels):
            if not self.binned and value is not None and level.label == shown(value):
                return number
            if self.binned and isinstance(value, int | float):
                inside = level.start <= value <= level.end
                if inside or equal(value, level.start) or equal(value, level.end):
                    return number
        return None


@dataclasses.dataclass(frozen=True)
class Effects:
    """The marginal effects of all hyperparameters that were varied.

    Attributes:
        effects: The most important one first.
        balanced: Whether the trials are a full factorial design, so that nothing was to adjust.
        adjusted_for: The hyperparameters whose effects were taken out of all others: those that
            explain most alone, as many as the number of trials allows.
        unexplained: Share of the variance that the main effects of these leave: interactions and
            the chance of training; NaN where there is no variance.
        trials: Those that were compared.
        brackets: Whether Hyperband's brackets were adjusted for.
    """

    effects: tuple[Effect, ...]
    balanced: bool
    adjusted_for: tuple[str, ...]
    unexplained: float
    trials: tuple[Trial, ...]
    brackets: bool

    @property
    def diverged(self) -> int:
        """Number of compared trials that diverged."""
        return sum(trial.status == "diverged" for trial in self.trials)


@dataclasses.dataclass(frozen=True)
class _Factor:
    """A hyperparameter, coded: the level of each trial, -1 where it is not active."""

    name: str
    kind: str
    labels: tuple[str, ...]
    codes: np.ndarray
    bounds: tuple[tuple[float, float], ...] = ()

    @property
    def columns(self) -> np.ndarray:
        """One column a level, centred over the active trials and 0 in all others.

        A conditional hyperparameter so stays out of the comparison of what it depends on.
        """
        active = self.codes >= 0
        coded = np.zeros((len(self.codes), len(self.labels)))
        coded[active] = np.eye(len(self.labels))[self.codes[active]]
        coded[active] -= coded[active].mean(axis=0)
        return coded


def marginal_effects(trials: Sequence[Trial], direction: Direction) -> Effects:
    """How the score depends on each hyperparameter alone.

    Failed trials are left out, diverged ones count like the worst completed one. Hyperband promotes
    by score, so its promoted trials are no fair sample: each configuration counts as it was before
    any promotion, and the bracket, which sets the epochs of that first training, is one more factor
    of the model. A hyperparameter that is active in some trials only is compared among
    these. Numbers with many different values are cut into two to four bins of like size.

    With fewer than two trials for each coefficient of the model, only the hyperparameters that
    explain most alone are adjusted for, as many as there is room for.

    Importance is the variance of the fitted effect over the trials, as a share of the variance of
    the score. On a balanced design that is the sum of squares of the main effect, and the shares
    and `unexplained` add up to 1. On an unbalanced one what an effect of nothing would reach by
    chance is taken off, so a share may be 0, and they do not add up.

    The interval of a level is Student's 95 % interval of the mean of its trials, after the effects
    of the other hyperparameters are taken out, widened for the coefficients of the model. It shows
    how much the effect depends on the other hyperparameters, and on the chance of training; it says
    nothing about other images.

    Args:
        trials: Of one search, superseded ones included.
        direction: Whether "max" or "min" is best.

    Returns:
        None for a hyperparameter that has one value only, and none at all of fewer than 4 trials.

    Raises:
        ValueError: As `trials.configurations`.
    """
    used = _comparable(trials)
    if len(used) < LEAST_TRIALS:
        return Effects((), False, (), math.nan, tuple(used), False)
    scores = _scores(used, direction)
    found = [_factor(name, [trial.values.get(name) for trial in used]) for name in names(used)]
    factors = [factor for factor in found if factor]
    columns = {factor.name: factor.columns for factor in factors}
    bracket = _factor("", [None if t.bracket is None else str(t.bracket) for t in used])
    nuisance = {"": bracket.columns} if bracket else {}
    balanced = not nuisance and _balanced(factors)
    total = float(((scores - scores.mean()) ** 2).sum())

    def importance(name: str, fit: _Fit) -> float:
        explained = fit.explained(name) - (0 if balanced else fit.chance(name))
        return max(0.0, explained / total) if total else 0.0

    def alone(name: str) -> float:
        return importance(name, _fit({**nuisance, name: columns[name]}, scores))

    covariates = dict(nuisance)
    for name in sorted(columns, key=alone, reverse=True):
        larger = {**covariates, name: columns[name]}
        if balanced or len(used) >= _TRIALS_A_COEFFICIENT * _fit(larger, scores).rank:
            covariates = larger
    model = _fit(covariates, scores)
    effects = []
    for factor in factors:
        name, fit = factor.name, model
        if name not in covariates:
            fit = _fit({**covariates, name: columns[name]}, scores)
        effects.append(_effect(factor, used, scores, fit, importance(name, fit), direction))
    effects.sort(key=lambda effect: -effect.importance)
    left = model.left if balanced else model.variance * (len(used) - 1)
    return Effects(
        effects=tuple(effects),
        balanced=balanced,
        adjusted_for=tuple(name for name in columns if name in covariates),
        unexplained=min(1.0, left / total) if total else math.nan,
        trials=tuple(used),
        brackets=bool(nuisance),
    )


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    """Each configuration as it was before any promotion, in the order in which they ended."""
    firsts = (
        next((trial for trial in family if trial.status != "failed"), None)
        for family in configurations(trials)
    )
    return sorted(filter(None, firsts), key=lambda trial: trial.order)


def _scores(trials: Sequence[Trial], direction: Direction) -> np.ndarray:
    """Diverged trials count as the worst completed one: their own score would outweigh all."""
    done = [trial.score for trial in trials if trial.status == "completed"] or [0.0]
    worst = min(done) if direction == "max" else max(done)
    return np.array([t.score if t.status == "completed" else worst for t in trials], dtype=float)


def _factor(name: str, values: Sequence[Value | None]) -> _Factor | None:
    """Codes a hyperparameter; None where it has one value only."""
    active = [value for value in values if value is not None]
    if len({shown(value) for value in active}) < 2:
        return None
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in active)
    kind = "number" if numeric else "choice"
    if numeric and min(active) > 0 and max(active) >= _LOG_FROM * min(active):
        kind = "log number"
    most = max(_FEW_LEVELS, min(_MOST_LEVELS, len(active) // _TRIALS_A_LEVEL))
    if numeric and len(set(active)) > min(most, len(active) - 1):
        return _binned(name, kind, values)
    # One hidden layer (16, 32) comes before two (16-8, 32-16).
    ordered = sorted(set(active), key=None if numeric else lambda v: (len(shown(v)), shown(v)))
    labels = list(dict.fromkeys(shown(value) for value in ordered))
    codes = [-1 if value is None else labels.index(shown(value)) for value in values]
    return _Factor(name, kind, tuple(labels), np.array(codes))


def _binned(name: str, kind: str, values: Sequence[Value | None]) -> _Factor:
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    active = np.isfinite(numbers)
    bins = min(4, max(2, active.sum() // _TRIALS_A_BIN))
    edges = np.quantile(numbers[active], np.arange(1, bins) / bins)
    # Equal values fall into one bin, which may leave another one empty.
    _, inside = np.unique(np.searchsorted(edges, numbers[active]), return_inverse=True)
    codes = np.full(len(values), -1)
    codes[active] = inside
    bounds = [
        (numbers[codes == b].min(), numbers[codes == b].max()) for b in range(max(inside) + 1)
    ]
    labels = [
        shown(_plain(low)) + (f" to {shown(_plain(high))}" if high > low else "")
        for low, high in bounds
    ]
    return _Factor(name, kind, tuple(labels), codes, tuple(bounds))


def _plain(number: float) -> float | int:
    """Whole numbers of a bin are written as such."""
    return int(number) if float(number).is_integer() else float(number)


def _balanced(factors: Sequence[_Factor]) -> bool:
    """Whether every combination of levels was tried, and as often as any other."""
    if any((factor.codes < 0).any() or factor.bounds for factor in factors):
        return False
    counts = Counter(zip(*(factor.codes.tolist() for factor in factors), strict=True))
    cells = math.prod(len(factor.labels) for factor in factors)
    return len(counts) == cells and len(set(counts.values())) == 1


@dataclasses.dataclass(frozen=True)
class _Fit:
    """An additive model, fitted by least squares: what each factor adds to each score."""

    parts: Mapping[str, np.ndarray]
    norms: Mapping[str, float]
    left: float
    rank: int
    count: int

    @property
    def variance(self) -> float:
        """Of a score around the model; infinite where the model has no trial to spare."""
        spare = self.count - self.rank
        return self.left / spare if spare > 0 else math.inf

    def explained(self, name: str) -> float:
        """Sum of squares of a factor."""
        return float((self.parts[name] ** 2).sum())

    def chance(self, name: str) -> float:
        """What that sum would be on average if the factor did nothing."""
        return self.variance * self.norms[name]

    def adjusted(self, name: str, scores: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Scores from which what the other factors do is taken out; their mean is kept."""
        others = np.zeros(self.count)
        for key, part in self.parts.items():
            if key != name:
                others += part
        return scores - others + others[active].mean()


def _fit(columns: Mapping[str, np.ndarray], scores: np.ndarray) -> _Fit:
    design = np.hstack([np.ones((len(scores), 1)), *columns.values()])
    inverse = np.linalg.pinv(design)
    ends = np.cumsum([1, *(block.shape[1] for block in columns.values())])
    # Each factor's part is a linear function of the scores; its norm tells how it carries noise.
    smoothers = {
        name: block @ inverse[start:end]
        for (name, block), (start, end) in zip(
            columns.items(), itertools.pairwise(ends), strict=True
        )
    }
    return _Fit(
        parts={name: smoother @ scores for name, smoother in smoothers.items()},
        norms={name: float((smoother**2).sum()) for name, smoother in smoothers.items()},
        left=float(((scores - design @ (inverse @ scores)) ** 2).sum()),
        rank=int(np.linalg.matrix_rank(design)),
        count=len(scores),
    )


def _effect(
    factor: _Factor,
    trials: Sequence[Trial],
    scores: np.ndarray,
    fit: _Fit,
    importance: float,
    direction: Direction,
) -> Effect:
    adjusted = fit.adjusted(factor.name, scores, factor.codes >= 0)
    # A model with many coefficients lies closer to its own trials than to any others.
    spare = len(trials) - fit.rank
    widened = math.sqrt((len(trials) - 1) / spare) if spare > 0 else math.nan
    best = max if direction == "max" else min
    levels, members = [], []
    for code, label in enumerate(factor.labels):
        at = np.flatnonzero(factor.codes == code)
        members.append(tuple(trials[row] for row in at))
        mean = float(adjusted[at].mean())
        half = math.nan
        if len(at) > 1:
            error = widened * adjusted[at].std(ddof=1) / math.sqrt(len(at))
            half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(at) - 1) * error)
        start, end = factor.bounds[code] if factor.bounds else (math.nan, math.nan)
        levels.append(
            Level(
                label=label,
                count=len(at),
                diverged=sum(trial.status == "diverged" for trial in members[-1]),
                mean=mean,
                low=mean - half,
                high=mean + half,
                best=float(best(scores[at])),
                start=float(start),
                end=float(end),
            )
        )
    return Effect(
        factor.name, factor.kind, bool(factor.bounds), tuple(levels), importance, tuple(members)
    )


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
        return any(apart(estimate) for estimate in self.differences.values())


def apart(difference: Estimate) -> bool:
    """Whether the interval of a difference lies on one side of 0; False where there is none."""
    return difference.low > 0 or difference.high < 0


def beside_the_paper(
    search: Search, answers: Answers | None, metrics: Sequence[str] = ("accuracy", "macro_f1")
) -> BesideThePaper | None:
    """Sets the best configuration found beside the paper's.

    Args:
        search: Finished or not.
        answers: On the images that chose, if known.
        metrics: Of the differences.

    Returns:
        None where the paper's point was not tried or has failed, or no trial was completed.
    """
    paper = search.paper
    if paper is None or search.best is None:
        return None
    found: dict[str, Estimate] = {}
    if answers and paper is not search.best:
        rows = [answers.row(search.best), answers.row(paper)]
        if None not in rows:
            pair = answers.only(rows)
            found = {
                metric: differences(pair, search.best, metric, resamples=search.resamples)[
                    paper.trial_id
                ]
                for metric in metrics
            }
    place = search.ranked.index(paper) + 1
    return BesideThePaper(paper, place, len(search.scored), found)


def differences(
    answers: Answers, best: Trial, metric: str, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """A configuration minus each other one, with the paired bootstrap over images or groups.

    Args:
        answers: Of all of them.
        best: Which one.
        metric: See `Answers.figures`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap; one draw serves all differences.

    Returns:
        By id of the other trial; none where `best` has no predictions.
    """
    row = answers.row(best)
    others = [n for n in range(len(answers.trials)) if n != row]
    if row is None or not others:
        return {}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        figures = answers.figures(metric, weights)
        gaps = figures[:, [row]] - figures
        return {answers.trials[n].trial_id: gaps[:, n] for n in others}

    values = statistic(np.ones((1, len(answers.labels))))
    intervals = percentile_bootstrap(statistic, answers.groups, resamples=resamples, seed=seed)
    return {
        name: Estimate(
            value=float(values[name][0]),
            low=interval.low,
            high=interval.high,
            count=len(answers.labels),
            method=f"paired {interval.method}",
        )
        for name, interval in intervals.items()
    }


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
        seed: Of the draws.

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
        # A draw without a class has no macro F1, of any configuration.
        defined = np.isfinite(inside).all(axis=1) & np.isfinite(outside).all(axis=1)
        inside, outside = inside[defined], outside[defined]
        winner = inside.argmax(axis=1)
        at = np.arange(len(winner)), winner
        gaps.append(inside[at] - outside[at])
        winners.append(winner)
    gap, won = np.concatenate(gaps), np.concatenate(winners)
    if len(gap) < resamples / 2:
        return None
    row = answers.row(best)
    return Optimism(
        expected=float(gap.mean() / math.sqrt(2 - 1 / count)),
        again=float((won == row).mean()) if row is not None else math.nan,
        chosen=len(np.unique(won)),
        method=f"{len(gap)} draws of {count} {kind}, each scored on what it left out",
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
    right = np.concatenate([a.predicted[row] == a.labels for a, row in sides]).astype(float)
    groups = [*sides[0][0].groups, *sides[1][0].groups]
    first = np.arange(len(right)) < len(sides[0][0].labels)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            shares = [
                weights[:, side] @ right[side] / weights[:, side].sum(axis=1)
                for side in (first, ~first)
            ]
        return {"optimism": shares[0] - shares[1]}

    interval = percentile_bootstrap(statistic, groups, resamples=search.resamples)["optimism"]
    return Estimate(value, interval.low, interval.high, len(right), interval.method)
