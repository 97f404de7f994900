"""Which of two backbones is better, and which differences are noise.

Everything is computed from predictions on the same images. Two candidates are told apart only where
two unlike looks at them agree:

*   McNemar's test on the images that one of the two names rightly and the other wrongly (Q.
    McNemar, Psychometrika 12 (1947) 153-157), corrected over all pairs (S. Holm, Scand. J. Stat. 6
    (1979) 65-70). It takes images as independent, which flatters where they share a slide.
*   The interval of the paired difference in accuracy, by slide, and over seeds too.

Not told apart is not equal: it means that these images do not decide.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from replication.comparison.candidates import Candidate, on_same_images
from replication.comparison.differences import differences
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions

#: With fewer discordant images than this, McNemar's test is the exact binomial one.
_EXACT_BELOW = 25


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two candidates on the same images.

    Attributes:
        first: Name of one.
        second: Name of the other.
        only_first: Images that only the first named rightly.
        only_second: Images that only the second named rightly.
        p: Of McNemar's test, two-sided.
        p_holm: The same, corrected over all pairs.
        accuracy: First minus second, mean over the seeds, with its interval.
        macro_f1: The same of the macro F1.
        told_apart: Whether the corrected test and the interval of the accuracy both say so, and
            favour the same one. False means that these images do not decide, never that the two
            are equal.
        method: How McNemar's test was made, in words.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    p: float
    p_holm: float
    accuracy: Estimate
    macro_f1: Estimate
    told_apart: bool
    method: str


def pairwise(
    candidates: Sequence[Candidate],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Pair]:
    """Compares every two candidates on the images that both were scored on.

    McNemar's test needs one answer an image: with several seeds it is that of the mean
    probabilities over the seeds. It is the exact binomial test below 25 discordant images, and the
    chi-squared one with continuity correction from there on. The interval is by group where all
    are known, and widened by Student's over the seeds; run i of every candidate belongs to the same
    seed.

    Args:
        candidates: All scored on the same images, with as many seeds each. Given best first, the
            first member of a pair is the better one.
        confidence: Level of the intervals; one minus it is that of the corrected test.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        One for every two candidates, in their order; none for a single candidate.

    Raises:
        ValueError: They were scored on different images or with different numbers of seeds.
    """
    aligned = on_same_images(candidates)
    pairs = list(itertools.combinations(range(len(candidates)), 2))
    if not pairs:
        return []
    gaps = {
        (i, j): differences(aligned[i], aligned[j], confidence, resamples, seed) for i, j in pairs
    }
    right = [_ensemble_right(runs) for runs in aligned]
    tests = [_mcnemar(right[i], right[j]) for i, j in pairs]
    corrected = multipletests([p for *_, p in tests], method="holm")[1]
    seeds = len(aligned[0])
    subject = f"the mean probabilities of {seeds} seeds" if seeds > 1 else "one seed"
    compared = []
    for (i, j), (only_first, only_second, p), p_holm in zip(pairs, tests, corrected, strict=True):
        accuracy = gaps[i, j]["accuracy"]
        better = only_first > only_second and accuracy.low > 0
        worse = only_first < only_second and accuracy.high < 0
        kind = "exact" if only_first + only_second < _EXACT_BELOW else "chi-squared, corrected"
        compared.append(
            Pair(
                first=candidates[i].name,
                second=candidates[j].name,
                only_first=only_first,
                only_second=only_second,
                p=p,
                p_holm=float(p_holm),
                accuracy=accuracy,
                macro_f1=gaps[i, j]["macro_f1"],
                told_apart=bool(p_holm < 1 - confidence and (better or worse)),
                method=f"McNemar ({kind}) on {subject}, images taken as independent; "
                f"Holm over {len(pairs)} pair{'s' if len(pairs) > 1 else ''}",
            )
        )
    return compared


def _ensemble_right(runs: Sequence[Predictions]) -> np.ndarray:
    mean = np.mean([run.probabilities for run in runs], axis=0)
    return mean.argmax(axis=1) == runs[0].labels


def _mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    table = [
        [int((first & second).sum()), only_first],
        [only_second, int((~first & ~second).sum())],
    ]
    exact = only_first + only_second < _EXACT_BELOW
    return only_first, only_second, float(mcnemar(table, exact=exact, correction=True).pvalue)


def indistinguishable(names: Sequence[str], pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """The sets that the bars of a critical-difference diagram join.

    Source: J. Demšar, "Statistical comparisons of classifiers over multiple data sets", J. Mach.
    Learn. Res. 7 (2006) 1-30, section 3.2.2, for the drawing; the tests are those of `pairwise`. A
    set is a run of neighbours in the ranking no two of which are told apart, as long as can be. Two
    that are not neighbours may be undecided without standing in one set: the pairs say so.

    Args:
        names: In order of rank.
        pairs: From `pairwise`, of the same candidates.

    Returns:
        Names in order of rank; no set within another, and none of a single name.
    """
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.told_apart}
    sets: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(names)):
        end = start + 1
        while end < len(names) and not any(
            frozenset((name, names[end])) in apart for name in names[start:end]
        ):
            end += 1
        if end > reached and end - start > 1:
            sets.append(tuple(names[start:end]))
        reached = max(reached, end)
    return sets
