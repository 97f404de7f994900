"""How sure a figure is: Wilson intervals and resampled groups.

A resample is a row of weights: how much each image counts. Every statistic is a function of such
weights, so thousands of resamples are a few matrix products instead of a loop. Weights are never 0,
so that no resample lacks a class. Shares have their own interval in `replication.measures.shares`,
figures over classes in `replication.measures.class_figures`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special
from statsmodels.stats.proportion import proportion_confint

#: Weights held at a time: 4 million float64 are 32 MB.
_CHUNK_ENTRIES = 4_000_000

#: Fewer units than this have too little spread for resamples: no Dirichlet is as wide as Student's.
LEAST_UNITS = 5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval. ``dataclasses.asdict`` makes it ready for JSON.

    Attributes:
        value: The figure; NaN where it is undefined.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end of the interval; NaN where there is none.
        count: Number of images behind the figure (the denominator of a proportion).
        method: How the interval was made, in words.
    """

    value: float
    low: float
    high: float
    count: int
    method: str

    @property
    def told_from_zero(self) -> bool:
        """Whether the interval of a difference lies on one side of 0; False where there is none."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval without its figure.

    Attributes:
        low: Lower end; NaN where there is no interval.
        high: Upper end; NaN where there is no interval.
        method: How it was made, in words.
    """

    low: float
    high: float
    method: str


def wilson(successes: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22 (1927) 209-212. It assumes independent images, and stays inside 0..1 with
    a width above zero even at 0 of n and n of n.

    Args:
        successes: 0..total. A mean over seeds may be a fraction.
        total: Number of trials.
        confidence: Between 0 and 1.

    Returns:
        ``(low, high)``; two NaN where ``total`` is 0.

    Raises:
        ValueError: ``successes`` is not in 0..total, or ``confidence`` not between 0 and 1.

    Example:
        >>> low, high = wilson(778, 800)
        >>> f"{low:.4f} {high:.4f}"
        '0.9587 0.9818'
    """
    _check_confidence(confidence)
    if not 0 <= successes <= total:
        raise ValueError(f"wilson: expected 0 <= successes <= total, got {successes} of {total}")
    if total == 0:
        return float("nan"), float("nan")
    low, high = proportion_confint(successes, total, alpha=1 - confidence, method="wilson")
    # Rounding errors put the ends a hair beside 0 and 1, and so beside the point.
    point = successes / total
    return max(0.0, min(float(low), point)), min(1.0, max(float(high), point))


def resampling_units(groups: Sequence[str]) -> tuple[np.ndarray, str]:
    """What is drawn as a whole: groups where every one is known, else single images.

    Args:
        groups: The group of each image; '' = unknown.

    Returns:
        The unit of each image (int64 ``[n]``, 0..units-1), and 'groups' or 'images'.
    """
    names = np.asarray(groups, dtype=str)
    if len(names) and names.all():
        return np.unique(names, return_inverse=True)[1], "groups"
    return np.arange(len(groups)), "images"


def effective_count(sizes: npt.ArrayLike) -> float:
    """As how many units of equal size some of unequal size are good for a share or a sum.

    Source: L. Kish, "Survey Sampling" (1965), (sum m)^2 / sum m^2 with m in each unit.

    Args:
        sizes: ``[units]`` or, of several things that they hold, ``[things, units]``: the thing that
            fewest units hold decides.

    Returns:
        0 where units hold none of it.
    """
    sizes = np.atleast_2d(np.asarray(sizes, float))
    squares = (sizes**2).sum(axis=1)
    return float(np.divide(sizes.sum(axis=1) ** 2, squares, where=squares > 0, out=squares).min())


def group_weights(
    count: int,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
    rows: int = 1000,
    *,
    effective: float | None = None,
) -> Iterator[np.ndarray]:
    """Draws how much each unit counts, some resamples at a time.

    The weights of a resample are Dirichlet's, which is the Bayesian bootstrap where all its
    parameters are 1. With few units they are smaller: so small that the weighted mean of `count`
    numbers spreads as far as Student's interval of their mean does, whose degrees of freedom are
    those of the effective number of units.

    Source: D. B. Rubin, "The Bayesian bootstrap", Ann. Stat. 9 (1981) 130-134. The parameter a
    follows from the variance of such a mean, s^2 / (a count + 1) with s^2 over `count`, set equal
    to s^2 / (count - 1) times (t / z)^2.

    Args:
        count: Number of units.
        resamples: Number of resamples.
        seed: Seed of the draws. The size of the parts does not change them.
        confidence: Level of the interval that they are for, between 0 and 1.
        rows: Resamples at a time.
        effective: Number of units of equal size that they are as good as; None takes `count`.

    Yields:
        float64 ``[b, count]``, above 0, with a mean of 1 over many resamples; nothing where there
        are fewer than `LEAST_UNITS`, or where so few hold nearly all that no weights are as wide.
    """
    effective = count if effective is None else effective
    if count < LEAST_UNITS or effective <= 1:
        return
    tail = (1 + confidence) / 2
    student = special.ndtri(tail) / special.stdtrit(effective - 1, tail)
    shape = ((count - 1) * student**2 - 1) / count
    if not shape > 0:
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        yield rng.gamma(shape, size=(size, count)) / shape


def percentile_bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    groups: Sequence[str],
    *,
    sizes: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentiles of several statistics over the same resampled groups, or images.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13;
    groups drawn whole: A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application"
    (1997), section 3.8. The weights are those of `group_weights`.

    Args:
        statistic: From weights (float64 ``[b, n]``: how much each image counts) to named arrays
            ``[b]``, or ``[b, models]``, whose mean over the models is what the interval is of.
        groups: The group of each image, ``[n]``; '' = unknown.
        sizes: Of the units, where few may hold most of what is counted, see `effective_count`.
        confidence: Between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the draws. The size of the chunks in memory does not change them.

    Returns:
        An interval per name. It is NaN where `group_weights` gives none, or where the statistic is
        undefined.

    Raises:
        ValueError: No images, no resamples, or ``confidence`` not between 0 and 1.
    """
    _check_confidence(confidence)
    if not len(groups):
        raise ValueError("bootstrap: expected at least one image, got none")
    if resamples < 1:
        raise ValueError(f"bootstrap: expected at least 1 resample, got {resamples}")
    units, kind = resampling_units(groups)
    count = int(units.max()) + 1
    rows = max(1, _CHUNK_ENTRIES // len(units))
    over = f"{count} {kind if count > 1 else kind[:-1]}"
    parts: dict[str, list[np.ndarray]] = {}
    effective = None if sizes is None else effective_count(sizes)
    for weights in group_weights(count, resamples, seed, confidence, rows, effective=effective):
        for name, values in statistic(weights[:, units]).items():
            parts.setdefault(name, []).append(values.reshape(len(weights), -1).mean(axis=1))
    if not parts:
        none = Interval(np.nan, np.nan, f"no interval from {over}")
        return dict.fromkeys(statistic(np.ones((1, len(units)))), none)
    good = "" if effective is None else f" (as good as {effective:.0f} of equal size)"
    method = f"resampling of {over}{good}, {resamples} times"
    return {
        name: _percentiles(np.concatenate(values), confidence, method)
        for name, values in parts.items()
    }


def _percentiles(values: np.ndarray, confidence: float, method: str) -> Interval:
    if not np.isfinite(values).all():
        return Interval(np.nan, np.nan, "no interval of an undefined figure")
    tail = 50 * (1 - confidence)
    low, high = (float(x) for x in np.percentile(values, [tail, 100 - tail]))
    # Sums of weights differ in their last bits where nothing else does.
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        return Interval(np.nan, np.nan, f"no interval: {method.partition(',')[0]} tells no spread")
    return Interval(low, high, method)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
