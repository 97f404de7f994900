"""A finished comparison: who ranks where, at which cost, and what can be said about it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from replication.comparison.candidates import Candidate, on_same_images, summary
from replication.comparison.leaks import Leak, leak
from replication.comparison.pairs import Pair, indistinguishable, pairwise
from replication.drawing.shown import extent
from replication.measures import evaluation

#: The costs that a Pareto front is drawn for.
COSTS = ("gflops", "parameters", "milliseconds")


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
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The best first.

    Raises:
        ValueError: They were scored on different images or with different numbers of seeds.
    """
    on_same_images(candidates)
    scored = [(c, summary(c, confidence, resamples, seed)) for c in candidates]

    def key(entry: tuple[Candidate, Mapping[str, evaluation.SeedSummary]]) -> tuple:
        # The order of the seeds moves the last bit of a mean, which must not break a tie.
        accuracy, f1 = (round(entry[1][name].mean, 12) for name in ("accuracy", "macro_f1"))
        return -accuracy, -f1, entry[0].name

    return [Ranked(place, *entry) for place, entry in enumerate(sorted(scored, key=key), start=1)]


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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A finished comparison. What follows from the predictions is computed when first asked for.

    Attributes:
        title: Heading of the page.
        candidates: All scored on the same images, with as many seeds each.
        winner: Name of the one that was chosen.
        winner_note: How it was chosen, in words.
        design: What was scored on what, for example '5 folds cut by slide'.
        unit: What a group is, for example 'slide'.
        by_image: The same backbones with folds cut by image, where `candidates` were cut by group;
            some or none of them.
        let_in: The same of the control that tells leak from scarcity; some or none of them.
        resamples: Number of resamples behind every interval.

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
        return indistinguishable([entry.candidate.name for entry in self.ranked], self.pairs)

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
