"""How sure a share is where images come in groups that resemble each other.

A share of n images of G groups is known as well as a share of fewer independent images, somewhere
between G and n. Wilson's interval of that many images is what stands here.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from replication.measures.intervals import (
    Estimate,
    Interval,
    effective_count,
    resampling_units,
    wilson,
)

#: With fewer effective groups no interval is told: one group has no spread, and Student's of less
#: than one degree of freedom says nothing.
LEAST_GROUPS = 2.0


@dataclasses.dataclass(frozen=True)
class Share:
    """A share and what is known of it.

    Attributes:
        value: 0..1; NaN where there is nothing to count.
        low: Lower end of its interval; 0 where nothing is known.
        high: Upper end; 1 where nothing is known.
        count: Images counted.
        groups: Effective number of groups they are of: (sum m)^2 / sum m^2 with m images each.
    """

    value: float
    low: float
    high: float
    count: int
    groups: float

    @property
    def has_interval(self) -> bool:
        """Whether there are groups enough for an interval."""
        return self.groups >= LEAST_GROUPS


def share_by_unit(hits: np.ndarray, among: np.ndarray, confidence: float = 0.95) -> Share:
    """Wilson's interval with the effective number of images, and Student's for few groups.

    The effective number is the number of images over the design effect, the variance of the share
    over groups against that of independent images. It is not told by groups that all agree: there
    it lies between 1 and the size of a group, and the worst is taken. So the estimate is drawn
    towards that worst as one group more would, against as many groups as hold the rarer outcome.

    Source: E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Surv. Methodol. 24 (1998) 193-201, for
    the effective number and Student's part (with Wilson's for Clopper and Pearson's interval); L.
    Kish, "Survey Sampling" (1965), for design effect and effective groups; F. E. Satterthwaite, "An
    approximate distribution of estimates of variance components", Biometrics Bull. 2 (1946)
    110-114, for the degrees of freedom where groups are unequal. The weight of the worst is ours;
    its coverage is in results/interval_coverage.csv.

    Args:
        hits: float64 ``[units]``: hits in each unit, 0 to `among`; fractions where each image has a
            mean over models.
        among: float64 ``[units]``: images counted in each.
        confidence: Between 0 and 1.

    Returns:
        The share. Units that are single images, each a hit or none, get Wilson's interval as it is.
    """
    counted = among > 0
    hits, among = np.asarray(hits, float)[counted], np.asarray(among, float)[counted]
    total = among.sum()
    if not total:
        return Share(math.nan, math.nan, math.nan, 0, 0.0)
    # Sums of fractions may pass their end by rounding.
    value = min(1.0, max(0.0, float(hits.sum() / total)))
    if among.max() == 1 and np.isin(hits, (0, 1)).all():
        return Share(value, *wilson(hits.sum(), int(total), confidence), int(total), total)
    groups = effective_count(among)
    if groups < LEAST_GROUPS:
        return Share(value, 0.0, 1.0, round(total), groups)
    # Over how many units the rarer outcome is spread; a sum of rounding errors is none.
    both = effective_count([np.where(of > _ROUNDING, of, 0) for of in (hits, among - hits)])
    effect = 0.0
    if 0 < value < 1:
        units = len(among)
        variance = units / (units - 1) * ((hits - value * among) ** 2).sum() / total**2
        effect = variance * total / (value * (1 - value))
    # How alike images of a group are (intraclass correlation) tells how much large groups weigh.
    alike = min(1.0, max(0.0, effect - 1) / max(total / groups - 1, _ROUNDING))
    freedom = max(1.0, effective_count(among * (1 + (among - 1) * alike)) - 1)
    effect = (both * effect + _WORST * total / groups) / (both + _WORST)
    tail = (1 + confidence) / 2
    student = special.ndtri(tail) / special.stdtrit(freedom, tail)
    effective = total / effect * student**2
    return Share(value, *_wilson(value, effective, confidence), round(total), groups)


#: Weight of the worst design effect, in groups that hold the rarer outcome.
_WORST = 0.3

#: A sum of rounding errors is none.
_ROUNDING = 1e-9


def _wilson(value: float, count: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a number of images that need not be whole."""
    z2 = special.ndtri((1 + confidence) / 2) ** 2 / count
    middle = (value + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * value * (1 - value) + z2**2 / 4) / (1 + z2)
    return max(0.0, min(middle - half, value)), min(1.0, max(middle + half, value))


def share(
    hits: np.ndarray, among: np.ndarray, groups: Sequence[str], confidence: float = 0.95
) -> Estimate:
    """A share of images, by group where every group is known.

    Args:
        hits: bool or float64 ``[n]``, 0..1; of images outside `among` it does not count.
        among: bool ``[n]``: the images that are counted.
        groups: Group of each image; '' = unknown.
        confidence: Between 0 and 1.

    Returns:
        The share and its interval; NaN ends, and why in `method`, where none holds.
    """
    units, kind = resampling_units(groups)
    measured = share_by_unit(*by_unit(hits, among, units), confidence)
    if not measured.count:
        return Estimate(math.nan, math.nan, math.nan, 0, "undefined: no image to count")
    ends = interval(measured, kind)
    return Estimate(measured.value, ends.low, ends.high, measured.count, ends.method)


def by_unit(
    hits: np.ndarray, among: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums hits and images over units.

    Args:
        hits: ``[n]``.
        among: bool ``[n]``.
        units: int64 ``[n]``, from `resampling_units`.

    Returns:
        float64 ``[units]`` each.
    """
    count = int(units.max()) + 1 if len(units) else 0
    return (
        np.bincount(units, np.where(among, hits, 0.0), minlength=count),
        np.bincount(units, np.asarray(among, float), minlength=count),
    )


def method(measured: Share, kind: str) -> str:
    """How the interval of a share was made, in words.

    Args:
        measured: The share, from `share_by_unit`.
        kind: 'groups', 'images' or what else was drawn whole.
    """
    if kind == "images":
        return "Wilson" if measured.has_interval else "no interval from one image"
    if not measured.has_interval:
        return f"no interval: nearly all images are of one {kind.removesuffix('s')}"
    return (
        f"Wilson with the design effect of {kind}, Student's for few "
        f"(as good as {measured.groups:.0f} of equal size)"
    )


def interval(measured: Share, kind: str) -> Interval:
    """The interval of a share, NaN where none holds, with its `method`."""
    ends = (measured.low, measured.high) if measured.has_interval else (math.nan, math.nan)
    return Interval(*ends, method(measured, kind))


def difference(
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str],
    confidence: float = 0.95,
) -> Interval:
    """Interval of the share of hits of one model minus that of another on the same images.

    It combines the shares of images that only the first and that only the second hits, or else both
    shares as if they were of different images, whichever is narrower (G. Y. Zou and A. Donner,
    "Construction of confidence limits about effect measures", Stat. Med. 27 (2008) 1693-1702).

    Args:
        first: bool ``[m, n]``: hits of each of m models.
        second: bool ``[m, n]``; row i is paired with row i of the first.
        groups: Group of each image; '' = unknown.
        confidence: Between 0 and 1.

    Returns:
        The interval of the mean difference; NaN ends where all images are of one group.
    """
    units, kind = resampling_units(groups)
    every = np.ones(len(units), bool)

    def share_of(hits: np.ndarray) -> Share:
        return share_by_unit(*by_unit(hits.mean(axis=0), every, units), confidence)

    ends = [
        independent_difference(share_of(one), share_of(other))
        for one, other in ((first & ~second, second & ~first), (first, second))
    ]
    if not share_of(first).has_interval:
        return interval(share_of(first), kind)
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    words = f"Wilson of both sides by {kind.removesuffix('s')} with the design effect, combined"
    return Interval(low, high, words)


def independent_difference(first: Share, second: Share) -> tuple[float, float]:
    """Ends of the interval of one share minus another of other images."""
    gap = first.value - second.value
    return (
        gap - math.hypot(first.value - first.low, second.high - second.value),
        gap + math.hypot(first.high - first.value, second.value - second.low),
    )


def over_seeds(
    value: float, low: float, high: float, by_seed: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Widens the interval of a difference of shares from these seeds to any seeds, by Student's.

    Args:
        value: Its mean over the seeds.
        low: Lower end of its interval for these seeds.
        high: Upper end.
        by_seed: float64 ``[seeds]``.
        confidence: Between 0 and 1.

    Returns:
        Both ends, within -1 to 1; as they were for one seed, which says nothing of others.
    """
    if len(by_seed) < 2:
        return low, high
    half = student_half_width(by_seed, confidence)
    # Student's of two seeds may go on beyond what a difference of shares can be.
    return (
        max(-1.0, value - math.hypot(value - low, half)),
        min(1.0, value + math.hypot(high - value, half)),
    )


def student_half_width(by_seed: np.ndarray, confidence: float = 0.95) -> float:
    """Half the width of Student's interval of the mean over seeds; NaN for one seed."""
    seeds = len(by_seed)
    if seeds < 2:
        return math.nan
    quantile = special.stdtrit(seeds - 1, (1 + confidence) / 2)
    return float(quantile * np.std(by_seed, ddof=1) / math.sqrt(seeds))
