"""Which backbone is better, which differences are noise, and how much a cut by image leaks.

Everything is computed from predictions on the same images. Two candidates are told apart only where
two unlike looks at them agree:

*   McNemar's test on the images that one of the two names rightly and the other wrongly (Q.
    McNemar, Psychometrika 12 (1947) 153-157), corrected over all pairs (S. Holm, Scand. J. Stat. 6
    (1979) 65-70). It takes images as independent, which flatters where they share a slide.
*   The interval of the paired difference in accuracy, by slide, and over seeds too.

Not told apart is not equal: it means that these images do not decide.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from replication.comparison.candidates import Candidate, Cost, on_same_images
from replication.measures import class_figures, evaluation, shares
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions

__all__ = [
    "COSTS",
    "Candidate",
    "Comparison",
    "Cost",
    "Leak",
    "Pair",
    "Ranked",
    "extent",
    "indistinguishable",
    "leak",
    "pairwise",
    "pareto",
    "rank",
    "sentence",
    "told_from_zero",
]

#: The costs that a Pareto front is drawn for.
COSTS = ("gflops", "parameters", "milliseconds")

#: With fewer discordant images than this, McNemar's test is the exact binomial one.
_EXACT_BELOW = 25

_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate and its place.

    Attributes:
        rank: 1 = the highest mean accuracy.
        candidate: The candidate.
        summary: From `evaluation.summarise_seeds`.
    """

    rank: int
    candidate: Candidate
    summary: Mapping[str, evaluation.SeedSummary]


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


@dataclasses.dataclass(frozen=True)
class Leak:
    """One backbone scored on the same images with folds cut in two ways, and their control.

    Cut by group, a model trains on none of the groups that it is tested on, and on fewer groups.
    The control trains on as few, with images of the tested groups let in (`tfds_pap.folds`).

    Attributes:
        name: The backbone.
        images: Number of images.
        groups: Number of groups.
        groups_by_class: Number of groups that hold each class.
        majority: 'accuracy', 'balanced_accuracy' and 'macro_f1' of always naming the most frequent
            class, and under 'class' its name.
        by_image: 'accuracy', 'balanced_accuracy' and 'macro_f1' with folds cut by image.
        by_group: The same with folds cut by group.
        let_in: The same of the control; None where it was not scored.
        difference: By image minus by group, paired: leak and scarcity together.
        leak: Control minus by group: what images of the same groups in training add.
        scarcity: By image minus control: what more groups in training add.
    """

    name: str
    images: int
    groups: int
    groups_by_class: Mapping[str, int]
    majority: Mapping[str, float | str]
    by_image: Mapping[str, evaluation.SeedSummary]
    by_group: Mapping[str, evaluation.SeedSummary]
    let_in: Mapping[str, evaluation.SeedSummary] | None
    difference: Mapping[str, Estimate]
    leak: Mapping[str, Estimate] | None
    scarcity: Mapping[str, Estimate] | None


def told_from_zero(difference: Estimate) -> bool:
    """Whether the interval of a difference lies on one side of 0; False where there is none."""
    return difference.low > 0 or difference.high < 0


def rank(
    candidates: Sequence[Candidate],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Ranked]:
    """Sorts candidates by mean accuracy; of equals by macro F1, then by name.

    Args:
        candidates: All scored on the same images, with as many seeds each.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The best first.

    Raises:
        ValueError: They were scored on different images or with different numbers of seeds.
    """
    on_same_images(candidates)
    scored = [(c, _summary(c, confidence, resamples, seed)) for c in candidates]

    def key(entry: tuple[Candidate, Mapping[str, evaluation.SeedSummary]]) -> tuple:
        # The order of the seeds moves the last bit of a mean, which must not break a tie.
        accuracy, f1 = (round(entry[1][name].mean, 12) for name in ("accuracy", "macro_f1"))
        return -accuracy, -f1, entry[0].name

    return [Ranked(place, *entry) for place, entry in enumerate(sorted(scored, key=key), start=1)]


@functools.lru_cache(maxsize=64)
def _summary(
    candidate: Candidate, confidence: float, resamples: int, seed: int
) -> Mapping[str, evaluation.SeedSummary]:
    """Ranking and leak quote the same figures; each takes a second or two to compute."""
    return evaluation.summarise_seeds(
        candidate.runs, confidence=confidence, resamples=resamples, seed=seed
    )


def _difference(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """First minus second, run by run; with several seeds for other seeds as well."""
    labels, groups, classes = first[0].labels, first[0].groups, len(first[0].class_names)
    one, other = (np.stack([run.predicted for run in runs]) for runs in (first, second))
    present = np.bincount(labels, minlength=classes) > 0
    figures = class_figures.mean_figures(present, range(classes), _METRICS)
    intervals = class_figures.difference_intervals(
        labels,
        one,
        other,
        groups,
        figures,
        classes=classes,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    intervals["accuracy"] = shares.difference(one == labels, other == labels, groups, confidence)
    by_seed = [figures(_matrices(labels, side, classes)) for side in (one, other)]
    found = {}
    for name in _METRICS:
        gaps = by_seed[0][name] - by_seed[1][name]
        value, interval = float(gaps.mean()), intervals[name]
        low, high = shares.over_seeds(value, interval.low, interval.high, gaps, confidence)
        method = f"paired, of one seed: {interval.method}"
        if len(gaps) > 1:
            method = f"paired: {interval.method}, and Student's over {len(gaps)} seeds"
        found[name] = Estimate(value, float(low), float(high), len(labels), method)
    return found


def _matrices(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix of each model, float64 ``[m, 1, k, k]``."""
    every = np.arange(classes)
    matrices = [confusion_matrix(labels, one, labels=every) for one in predicted]
    return np.array(matrices, float)[:, None]


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
        confidence: Of the intervals. One minus it is the level of the corrected test.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        One for every two candidates, in their order; none for a single candidate.

    Raises:
        ValueError: They were scored on different images or with different numbers of seeds.
    """
    aligned = on_same_images(candidates)
    pairs = list(itertools.combinations(range(len(candidates)), 2))
    if not pairs:
        return []
    differences = {
        (i, j): _difference(aligned[i], aligned[j], confidence, resamples, seed) for i, j in pairs
    }
    right = [_ensemble_right(runs) for runs in aligned]
    tests = [_mcnemar(right[i], right[j]) for i, j in pairs]
    corrected = multipletests([p for *_, p in tests], method="holm")[1]
    seeds = len(aligned[0])
    subject = f"the mean probabilities of {seeds} seeds" if seeds > 1 else "one seed"
    found = []
    for (i, j), (only_first, only_second, p), p_holm in zip(pairs, tests, corrected, strict=True):
        accuracy = differences[i, j]["accuracy"]
        better = only_first > only_second and accuracy.low > 0
        worse = only_first < only_second and accuracy.high < 0
        kind = "exact" if only_first + only_second < _EXACT_BELOW else "chi-squared, corrected"
        found.append(
            Pair(
                first=candidates[i].name,
                second=candidates[j].name,
                only_first=only_first,
                only_second=only_second,
                p=p,
                p_holm=float(p_holm),
                accuracy=accuracy,
                macro_f1=differences[i, j]["macro_f1"],
                told_apart=bool(p_holm < 1 - confidence and (better or worse)),
                method=f"McNemar ({kind}) on {subject}, images taken as independent; "
                f"Holm over {len(pairs)} pair{'s' if len(pairs) > 1 else ''}",
            )
        )
    return found


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


def indistinguishable(ranked: Sequence[Ranked], pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """The sets that the bars of a critical-difference diagram join.

    Source: J. Demšar, "Statistical comparisons of classifiers over multiple data sets", J. Mach.
    Learn. Res. 7 (2006) 1-30, section 3.2.2, for the drawing; the tests are those of `pairwise`. A
    set is a run of neighbours in the ranking no two of which are told apart, as long as can be. Two
    that are not neighbours may be undecided without standing in one set: the pairs say so.

    Args:
        ranked: From `rank`.
        pairs: From `pairwise`, of the same candidates.

    Returns:
        Names in order of rank; no set within another, and none of a single name.
    """
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.told_apart}
    names = [entry.candidate.name for entry in ranked]
    sets, reached = [], 0
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


def sentence(names: Sequence[str], images: int, groups: int = 0, unit: str = "group") -> str:
    """Says that candidates cannot be told apart, and on how much.

    Args:
        names: Two or more, from `indistinguishable`.
        images: Number of images.
        groups: Number of groups; 0 = unknown.
        unit: What a group is.

    Returns:
        A sentence.

    Example:
        >>> sentence(("resnet152", "densenet201", "vgg16"), 800, 78, "slide")
        'resnet152, densenet201 and vgg16 cannot be told apart on 800 images (78 slides).'
    """
    *most, last = names
    return f"{', '.join(most)} and {last} cannot be told apart on {extent(images, groups, unit)}."


def extent(images: int, groups: int, unit: str) -> str:
    """How much was scored, for example '478 images (31 slides)'; 0 groups = unknown."""
    within = f" ({groups:,} {unit}{'' if groups == 1 else 's'})" if groups else ""
    return f"{images:,} image{'' if images == 1 else 's'}{within}"


def pareto(values: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Names that no other beats: none is as good or better and as cheap or cheaper, and differs.

    Args:
        values: What is wanted high, by name.
        costs: What is wanted low, by the same names.

    Returns:
        The front, the cheapest first.

    Example:
        >>> pareto({"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 5.0, "b": 1.0, "c": 2.0})
        ['b', 'a']
    """

    def beats(other: str, name: str) -> bool:
        here, there = (values[name], -costs[name]), (values[other], -costs[other])
        return here != there and there[0] >= here[0] and there[1] >= here[1]

    front = [name for name in values if not any(beats(other, name) for other in values)]
    return sorted(front, key=lambda name: (costs[name], name))


def leak(
    by_image: Candidate,
    by_group: Candidate,
    let_in: Candidate | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Leak:
    """How much a backbone gains where images of one group may lie on both sides of a cut.

    Args:
        by_image: Out-of-fold predictions with folds cut by image.
        by_group: The same images, with folds cut by group; as many seeds.
        let_in: The same images, from the control; None leaves leak and scarcity together.
        confidence: Of the intervals.
        resamples: Of groups.
        seed: Of the resamples.

    Returns:
        All figures and their paired differences.

    Raises:
        ValueError: Different backbones, images or numbers of seeds, or a group that is not known.
    """
    for other in (by_image, *([let_in] if let_in else [])):
        if (other.name, other.weights) != (by_group.name, by_group.weights):
            raise ValueError(
                f"leak: expected one backbone under both cuts, got {other.name} "
                f"({other.weights}) and {by_group.name} ({by_group.weights})"
            )
    scored = (by_group, by_image, *([let_in] if let_in else []))
    aligned = on_same_images(scored)
    first = aligned[0][0]
    for image, group in zip(first.ids, first.groups, strict=True):
        if not group:
            raise ValueError(f"leak: expected a known group for every image, none for {image!r}")
    summaries = [
        {name: _summary(c, confidence, resamples, seed)[name] for name in _METRICS} for c in scored
    ]

    def minus(one: int, other: int) -> dict[str, Estimate]:
        return _difference(aligned[one], aligned[other], confidence, resamples, seed)

    return Leak(
        name=by_image.name,
        images=len(first),
        groups=len(set(first.groups)),
        groups_by_class=_groups_by_class(first),
        majority=_majority(first),
        by_image=summaries[1],
        by_group=summaries[0],
        let_in=summaries[2] if let_in else None,
        difference=minus(1, 0),
        leak=minus(2, 0) if let_in else None,
        scarcity=minus(1, 2) if let_in else None,
    )


def _groups_by_class(run: Predictions) -> dict[str, int]:
    pairs = {*zip(run.labels.tolist(), run.groups, strict=True)}
    return {name: sum(label == c for label, _ in pairs) for c, name in enumerate(run.class_names)}


def _majority(run: Predictions) -> dict[str, float | str]:
    """Figures of always naming the most frequent class, and its name."""
    classes = len(run.class_names)
    counts = np.bincount(run.labels, minlength=classes)
    most = int(counts.argmax())
    figures = class_figures.mean_figures(counts > 0, range(classes), _METRICS)
    named = figures(_matrices(run.labels, np.full((1, len(run)), most), classes))
    return {"class": run.class_names[most], **{name: float(of[0]) for name, of in named.items()}}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A finished comparison. What follows from the predictions is computed when first asked for.

    Attributes:
        title: Of the page.
        candidates: All scored on the same images, with as many seeds each.
        winner: Name of the one that was chosen.
        winner_note: How it was chosen, in words.
        design: What was scored on what, for example '5 folds cut by slide'.
        unit: What a group is, for example 'slide'.
        by_image: The same backbones with folds cut by image, where `candidates` were cut by group;
            some or none of them.
        let_in: The same of the control that tells leak from scarcity; some or none of them.
        resamples: Of every bootstrap.

    Raises:
        ValueError: A name is there twice, or `winner` or one of `by_image` is no candidate.
    """

    title: str
    candidates: tuple[Candidate, ...]
    winner: str
    winner_note: str
    design: str
    unit: str = "group"
    by_image: tuple[Candidate, ...] = ()
    let_in: tuple[Candidate, ...] = ()
    resamples: int = 2000

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        others = [candidate.name for candidate in self.by_image]
        for name in (*names, *others):
            if max(names.count(name), others.count(name)) > 1:
                raise ValueError(f"comparison: expected each name once, got {name} twice")
        for name in (self.winner, *others):
            if name not in names:
                raise ValueError(f"comparison: expected one of {', '.join(names)}, got {name}")

    @property
    def images(self) -> int:
        """Number of images scored."""
        return len(self.candidates[0].runs[0])

    @property
    def groups(self) -> int:
        """Number of groups; 0 where a group is not known."""
        groups = self.candidates[0].runs[0].groups
        return len(set(groups)) if all(groups) else 0

    @functools.cached_property
    def ranked(self) -> list[Ranked]:
        """The best first."""
        return rank(self.candidates, resamples=self.resamples)

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """Every two, the one of higher rank first."""
        return pairwise([entry.candidate for entry in self.ranked], resamples=self.resamples)

    @functools.cached_property
    def sets(self) -> list[tuple[str, ...]]:
        """Neighbours in the ranking that cannot be told apart."""
        return indistinguishable(self.ranked, self.pairs)

    @property
    def sentences(self) -> list[str]:
        """What the pairwise tests say, in words."""
        if self.sets:
            return [sentence(names, self.images, self.groups, self.unit) for names in self.sets]
        over = extent(self.images, self.groups, self.unit)
        if not self.pairs:
            return [f"{self.winner} alone was scored, on {over}: there is nothing to compare."]
        return [f"Each backbone is told apart from its neighbours in the ranking on {over}."]

    @functools.cached_property
    def leaks(self) -> list[Leak]:
        """One for each backbone that was scored under both cuts, in order of rank."""
        others = {candidate.name: candidate for candidate in self.by_image}
        controls = {candidate.name: candidate for candidate in self.let_in}
        return [
            leak(
                others[entry.candidate.name],
                entry.candidate,
                controls.get(entry.candidate.name),
                resamples=self.resamples,
            )
            for entry in self.ranked
            if entry.candidate.name in others
        ]

    def front(self, cost: str) -> list[str]:
        """The Pareto front of accuracy against a cost, the cheapest first.

        An untrained backbone says nothing about the same backbone with its weights, so it stands
        on no front, unless all are untrained.

        Args:
            cost: 'gflops', 'parameters' or 'milliseconds'.
        """
        entries = [entry for entry in self.ranked if entry.candidate.trained] or self.ranked
        return pareto(
            {entry.candidate.name: entry.summary["accuracy"].mean for entry in entries},
            {entry.candidate.name: getattr(entry.candidate.cost, cost) for entry in entries},
        )
