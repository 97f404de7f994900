"""Samples of fields, seeds, searches and trials whose truth is known, for `interval_coverage`."""

import itertools
import types
from collections.abc import Callable, Iterator

import coverage_defects
import numpy as np

from finetune.report import effects, selection
from finetune.search.trials import Answers, Trial
from replication.fields.judge.curves import Curves
from replication.measures import intervals, shares
from tfds_pap.classes import Classes

#: Resamples of each interval that has some; the project takes 2,000, whose ends lie farther out.
_RESAMPLES = 200

#: Kind, both ends, truth.
Told = Iterator[tuple[str, float, float, float]]

Sampler = Callable[[np.random.Generator], Told]


def fields(world: str, count: int, seed: int) -> Sampler:
    """Whole fields with nuclei that are found or not, and ROIs that are none.

    Args:
        world: "like", or "unequal": a few fields hold most nuclei, or most false positives.
        count: Fields in a sample.
        seed: Of the population.
    """
    unequal = world == "unequal"

    def draw(rng: np.random.Generator, size: int) -> Curves:
        nuclei = 1 + rng.negative_binomial(*((0.7, 0.03) if unequal else (2, 0.08)), size)
        recall = rng.beta(*((4, 1.5) if unequal else (8, 2)), size)
        found = rng.binomial(nuclei, recall)
        wrong = rng.poisson(rng.gamma(*((0.8, 40) if unequal else (1.5, 20)), size))
        shift = rng.normal(0, 0.8 if unequal else 0.5, size)
        scores, hits = [], []
        for n, m, by in zip(found, wrong, shift, strict=True):
            logits = np.concatenate([rng.normal(1.5 + by, 1, n), rng.normal(-0.5 + by, 1, m)])
            scores.append(1 / (1 + np.exp(-logits)))
            hits.append(np.arange(n + m) < n)
        return Curves.of(scores, hits, nuclei.tolist())

    def figures(curves: Curves) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        hits, misfits = curves.hits[:, -1], curves.misfits[:, -1]

        def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
            nuclei, found, wrong = weights @ curves.nuclei, weights @ hits, weights @ misfits
            at = curves.recall_at(weights, (2, 8, 32))
            return {
                "fields: F1 of stage 1": 2 * found / (nuclei + found + wrong),
                "fields: false positives per field": wrong / weights.sum(axis=1),
                "fields: recall at 8 false positives": at[:, 1],
                "fields: mean recall over rates": at.mean(axis=1),
                "tried: average precision of fields": curves.average_precision(weights),
            }

        return statistic

    whole = draw(np.random.default_rng(seed), 10_000)
    once = np.ones((1, 10_000))
    truth = {name: float(of[0]) for name, of in figures(whole)(once).items()}
    found = whole.hits[:, -1].sum()
    recall = float(found / whole.nuclei.sum())
    precision = float(found / (found + whole.misfits[:, -1].sum()))

    def told(rng: np.random.Generator) -> Told:
        curves = draw(rng, count)
        hits = curves.hits[:, -1]
        for kind, among, value in (
            ("fields: recall", curves.nuclei, recall),
            ("fields: precision", hits + curves.misfits[:, -1], precision),
        ):
            share = shares.share_by_unit(hits, among)
            known = share.has_interval
            yield kind, *((share.low, share.high) if known else (np.nan, np.nan)), value
        resampled = intervals.percentile_bootstrap(
            figures(curves),
            [f"field {n}" for n in range(count)],
            sizes=np.array([curves.nuclei, curves.misfits[:, -1]]),
            resamples=_RESAMPLES,
        )
        for kind, ends in resampled.items():
            yield kind, ends.low, ends.high, truth[kind]

    return told


def seeds(world: str, groups: int, seed: int) -> Sampler:
    """Differences of two models over seeds and groups, and Student's of the seeds alone.

    Args:
        world: "like": seeds spread by 0.13; "unequal": by 0.04, with now and then one that fails,
            and groups of 1 to 60 images.
        groups: In a sample.
        seed: Not used; truth is known.
    """
    del seed
    unequal = world == "unequal"

    def skills(rng: np.random.Generator, count: int) -> np.ndarray:
        if unequal:
            return 0.05 + 0.04 * rng.standard_t(5, count)
        return rng.normal(0.05, 0.13, count)

    def told(rng: np.random.Generator) -> Told:
        for count in (2, 3, 5):
            skill = skills(rng, count)
            chance = np.clip(0.6 + rng.normal(0, 0.15, groups), 0.2, 0.8)
            sizes = np.clip(rng.lognormal(1.5, 1.1, groups), 1, 60).astype(int) if unequal else 8
            images = np.repeat(np.arange(groups), sizes)
            # A model is right where its luck is below the group's chance and its own skill.
            hits = rng.random((count, len(images))) < chance[images] - 0.05 + skill[:, None]
            other = rng.random((count, len(images))) < chance[images] - 0.05
            named = np.char.add("group ", np.char.zfill(images.astype(str), 4))
            ends = shares.difference(hits, other, named)
            gaps = hits.mean(axis=1) - other.mean(axis=1)
            low, high = shares.over_seeds(gaps.mean(), ends.low, ends.high, gaps)
            yield f"difference over {count} seeds", low, high, 0.05
            half, mean = shares.student_half_width(hits.mean(axis=1)), hits.mean()
            yield f"Student's of {count} seeds", mean - half, mean + half, chance[images].mean()

    return told


def searches(world: str, groups: int, seed: int) -> Sampler:
    """Searches among 30 configurations of equal true accuracy: best minus another one.

    Args:
        world: "like", or "unequal": groups of 1 to 150 images decide more than configurations do.
        groups: In a sample.
        seed: Not used; truth is known.
    """
    del seed
    unequal = world == "unequal"

    def told(rng: np.random.Generator) -> Told:
        sizes = 1 + rng.geometric(1 / 8, groups)
        if unequal:
            sizes = np.clip(rng.lognormal(1.5, 1.1, groups), 1, 150).astype(int)
        field = np.repeat(np.arange(groups), sizes)
        n, deep = len(field), 1.1 if unequal else 0.5
        hard = rng.normal(0, 0.7, groups)[field] + rng.normal(0, 1, n)
        own = rng.normal(0, deep, (30, groups))[:, field] + rng.normal(0, 0.8, (30, n))
        right = 1 + hard + own > 0
        labels = rng.integers(2, size=n)
        trials = tuple(
            types.SimpleNamespace(trial_id=f"{number:03}", epochs=1, order=number)
            for number in range(30)
        )
        answers = Answers(
            trials,
            labels,
            tuple(f"group {one:04}" for one in field),
            Classes.known(("background", "cell")),
            np.where(right, labels, 1 - labels),
            np.zeros((30, n)),
        )
        best = trials[int(right.mean(axis=1).argmax())]
        found = selection.differences(answers, best, "accuracy", resamples=100)
        wide = [(one.low, one.high) for one in found.values()]
        # All at once: the one farthest from 0 decides.
        low, high = max(low for low, _ in wide), min(high for _, high in wide)
        # Where one lies wholly above 0 and another below, none holds all.
        yield "search: best minus all 29 others at once", low, high, 0.0
        half = groups // 2
        first, second = (
            shares.share_by_unit(*shares.by_unit(right[0][part], np.ones(part.sum(), bool), of))
            for part, of in (
                (field < half, field[field < half]),
                (field >= half, field[field >= half] - half),
            )
        )
        ends = (np.nan, np.nan)
        if first.has_interval and second.has_interval:
            ends = shares.independent_difference(first, second)
        yield "gap of two sets of images", *ends, 0.0

    return told


#: Trials of the searches whose marginal means are told: whole grids, and points drawn at random.
_GRIDS = {"16 trials, a grid": (4, 2, 2), "48 trials, a grid": (4, 4, 3)}
_RANDOM = (8, 16, 30, 60)


def trials(world: str, groups: int, seed: int) -> Sampler:
    """Searches whose scores have main effects, an interaction and the chance of training.

    Args:
        world: "like", or "unequal": interactions outweigh main effects.
        groups: Not used.
        seed: Not used; truth is known.
    """
    del groups, seed
    interaction = 0.05 if world == "unequal" else 0.015

    def told(rng: np.random.Generator) -> Told:
        for kind, sizes in _GRIDS.items():
            tables = [_tables(rng, sizes, interaction)]
            points = np.array([*itertools.product(*map(range, sizes))])
            yield from _levels(rng, f"mean of a level, {kind}", tables[0], points)
        for count in _RANDOM:
            sizes = (4, 3, 2)
            points = np.stack([rng.integers(size, size=count) for size in sizes], axis=1)
            kind = f"mean of a level, {count} trials, random"
            yield from _levels(rng, kind, _tables(rng, sizes, interaction), points)

    return told


def _tables(rng: np.random.Generator, sizes: tuple[int, ...], interaction: float) -> np.ndarray:
    """The expected score of each point of a grid."""
    table = np.full(sizes, 0.8)
    for axis, size in enumerate(sizes):
        shape = [1] * len(sizes)
        shape[axis] = size
        table = table + rng.normal(0, 0.02, shape)
    for first, second in itertools.combinations(range(len(sizes)), 2):
        shape = [size if axis in (first, second) else 1 for axis, size in enumerate(sizes)]
        table = table + rng.normal(0, interaction, shape)
    return table


def _levels(rng: np.random.Generator, kind: str, table: np.ndarray, points: np.ndarray) -> Told:
    scores = table[tuple(points.T)] + rng.normal(0, 0.015, len(points))
    names = [f"h{axis}" for axis in range(table.ndim)]
    found = effects.marginal_effects(
        [
            Trial(
                trial_id=f"{number:03}",
                values=dict(zip(names, (f"v{v}" for v in point), strict=True)),
                status="completed",
                score=float(score),
                metrics={},
                best_epoch=1,
                epochs=1,
                order=number,
            )
            for number, (point, score) in enumerate(zip(points.tolist(), scores, strict=True))
        ],
        "max",
    )
    for effect in found.effects:
        axis = int(effect.name[1:])
        truth = table.mean(axis=tuple(a for a in range(table.ndim) if a != axis))
        for level in effect.levels:
            yield kind, level.low, level.high, float(truth[int(level.label[1:])])


#: What is drawn besides cells, from a world, a number of groups and a seed.
PARTS = {
    "fields": fields,
    "seeds": seeds,
    "searches": searches,
    "trials": trials,
    "defects": coverage_defects.defects,
}

#: Parts in which groups play no role.
WITHOUT_GROUPS = ("trials",)
