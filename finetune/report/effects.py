"""What a search says about its hyperparameters, and what its choice is worth.

A grid that was completed is a full factorial design, and its marginal means are the main effects of
the classical analysis of variance. Any other set of trials is unbalanced: a level may owe its mean
to the company that it was drawn in. Then an additive model of all hyperparameters is fitted by
least squares, and its marginal means are shown (S. R. Searle, F. M. Speed and G. A. Milliken,
"Population marginal means in the linear model: an alternative to least squares means", Am. Stat. 34
(1980) 216-221). On a balanced design they are the plain means, so one piece of code serves both.

Importance is the variance of the fitted effect over the trials, as a share of the variance of
the score. On a balanced design that is the sum of squares of the main effect, and the shares
and `unexplained` add up to 1. On an unbalanced one what an effect of nothing would reach by
chance is taken off, so a share may be 0, and they do not add up.

The interval of a level is Student's 95 % interval of what a configuration with it scores, over
all values of the other hyperparameters and the chance of training, on these images. Its
variance is that of the level's trials after the effects of the other hyperparameters are taken
out, widened for the coefficients of the model; where trials were drawn at random, that of the
effects taken out is added, as other values of them could have been drawn. It holds for grids
and random draws (results/interval_coverage.csv), not for a search that goes where scores are
high.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from finetune.search.trials import Direction, Trial, Value, configurations, equal, names, shown

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


@dataclasses.dataclass(frozen=True)
class Level:
    """A value of a hyperparameter, or a bin of its values.

    Attributes:
        label: The value, or the first and last value of the bin.
        count: Trials at it.
        diverged: How many of them diverged; they count like the worst completed trial.
        mean: Their marginal mean score.
        low: Lower end of its interval over trials; NaN where there is none, as of one trial.
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
        name: Name of the hyperparameter.
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
        scores: By id of the trial, what was compared.
        brackets: Whether Hyperband's brackets were adjusted for.
    """

    effects: tuple[Effect, ...]
    balanced: bool
    adjusted_for: tuple[str, ...]
    unexplained: float
    trials: tuple[Trial, ...]
    scores: Mapping[str, float]
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


def marginal_effects(
    trials: Sequence[Trial], direction: Direction, *, at_random: bool = True
) -> Effects:
    """How the score depends on each hyperparameter alone.

    Failed trials are left out, diverged ones count like the worst completed one. Hyperband promotes
    by score, so its promoted trials are no fair sample: each configuration counts as it was before
    any promotion, and the bracket, which sets the epochs of that first training, is one more factor
    of the model. A hyperparameter that is active in some trials only is compared among
    these. Numbers with many different values are cut into two to four bins of like size.

    With fewer than two trials for each coefficient of the model, only the hyperparameters that
    explain most alone are adjusted for, as many as there is room for.

    Args:
        trials: Of one search, superseded ones included.
        direction: Whether "max" or "min" is best.
        at_random: Whether no score had a say in which trials were made; else levels have no
            interval.

    Returns:
        None for a hyperparameter that has one value only, and none at all of fewer than 4 trials.

    Raises:
        ValueError: As `trials.configurations`.
    """
    used = _comparable(trials)
    if len(used) < LEAST_TRIALS:
        return Effects((), False, (), math.nan, tuple(used), {}, False)
    scores = _scores(used, direction)
    coded = [_factor(name, [trial.values.get(name) for trial in used]) for name in names(used)]
    factors = [factor for factor in coded if factor]
    columns = {factor.name: factor.columns for factor in factors}
    bracket = _factor("", [None if t.bracket is None else str(t.bracket) for t in used])
    nuisance = {"": bracket.columns} if bracket else {}
    balanced = not nuisance and _balanced(factors)
    total = float(((scores - scores.mean()) ** 2).sum())

    def importance(name: str, fit: _Fit) -> float:
        explained = fit.explained(name) - (0 if balanced else fit.chance(name))
        return max(0.0, explained / total) if total else 0.0

    covariates = _covariates(columns, nuisance, scores, balanced, importance)
    model = _fit(covariates, scores)

    def effect(factor: _Factor) -> Effect:
        name, fit = factor.name, model
        if name not in covariates:
            fit = _fit({**covariates, name: columns[name]}, scores)
        halves = [math.nan] * len(factor.labels)
        if at_random:
            halves = _half_widths(factor, scores, fit, balanced)
        return _effect(factor, used, scores, fit, importance(name, fit), direction, halves)

    effects = sorted(map(effect, factors), key=lambda one: -one.importance)
    left = model.left if balanced else model.variance * (len(used) - 1)
    return Effects(
        effects=tuple(effects),
        balanced=balanced,
        adjusted_for=tuple(name for name in columns if name in covariates),
        unexplained=min(1.0, left / total) if total else math.nan,
        trials=tuple(used),
        scores={t.trial_id: float(score) for t, score in zip(used, scores, strict=True)},
        brackets=bool(nuisance),
    )


def _covariates(
    columns: Mapping[str, np.ndarray],
    nuisance: Mapping[str, np.ndarray],
    scores: np.ndarray,
    balanced: bool,
    importance: Callable[[str, "_Fit"], float],
) -> dict[str, np.ndarray]:
    """What is adjusted for: brackets, and as many hyperparameters as there are trials for."""

    def alone(name: str) -> float:
        return importance(name, _fit({**nuisance, name: columns[name]}, scores))

    covariates = dict(nuisance)
    for name in sorted(columns, key=alone, reverse=True):
        larger = {**covariates, name: columns[name]}
        if balanced or len(scores) >= _TRIALS_A_COEFFICIENT * _fit(larger, scores).rank:
            covariates = larger
    return covariates


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
    numbers = [v for v in active if isinstance(v, int | float) and not isinstance(v, bool)]
    numeric = len(numbers) == len(active)
    kind = "number" if numeric else "choice"
    if numeric and min(numbers) > 0 and max(numbers) >= _LOG_FROM * min(numbers):
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
    halves: Sequence[float],
) -> Effect:
    adjusted = fit.adjusted(factor.name, scores, factor.codes >= 0)
    best = max if direction == "max" else min
    levels, members = [], []
    for code, (label, half) in enumerate(zip(factor.labels, halves, strict=True)):
        at = np.flatnonzero(factor.codes == code)
        mean = float(adjusted[at].mean())
        members.append(tuple(trials[row] for row in at.tolist()))
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


def _half_widths(factor: _Factor, scores: np.ndarray, fit: _Fit, balanced: bool) -> list[float]:
    """Half of Student's interval of each level's mean; NaN of a single trial."""
    active = factor.codes >= 0
    adjusted = fit.adjusted(factor.name, scores, active)
    # A model with many coefficients lies closer to its own trials than to any others.
    spare = len(scores) - fit.rank
    widened = (len(scores) - 1) / spare if spare > 0 else math.nan
    # A full factorial design puts every level in the same company, and brackets are nobody's draw.
    company = 0.0
    if not balanced:
        others = [part for name, part in fit.parts.items() if name not in ("", factor.name)]
        company = np.sum(others, axis=0)[active].var(ddof=1) / active.sum() if others else 0.0
    halves = []
    for code in range(len(factor.labels)):
        of = adjusted[factor.codes == code]
        half = math.nan
        if len(of) > 1:
            error = math.sqrt(widened * (of.var(ddof=1) / len(of) + company))
            half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(of) - 1)) * error
        halves.append(half)
    return halves
