"""Sizes of defects whose truth is known, as `pap defects` prints them, for `interval_coverage`."""

from collections.abc import Callable, Iterator

import numpy as np
from coverage_populations import WORLDS, Cells

from replication.ablation import sizes
from replication.comparison import differences
from replication.measures import class_figures
from replication.measures.predictions import Predictions

#: Resamples of each interval that has some; the project takes 2,000, whose ends lie farther out.
_RESAMPLES = 200
_CLASSES = 4
_NAMES = tuple(f"class {number}" for number in range(_CLASSES))

#: Kind, both ends, truth.
Told = Iterator[tuple[str, float, float, float]]


def defects(world: str, groups: int, seed: int) -> Callable[[np.random.Generator], Told]:
    """Figures of one model on some images minus another's on others (D2, D3), and D5 of the first.

    Half of the samples are of models that err in a quarter of the images, half of ones that err
    in few. Truths are those at the class shares of the samples.

    Args:
        world: Of `coverage_populations.WORLDS`.
        groups: In each of both sets of images.
        seed: Of the populations.
    """
    populations = {
        shares: [
            Cells(WORLDS[world], _CLASSES, shares == "rare", hard, 1, seed) for hard in (1.6, 4.0)
        ]
        for shares in ("even", "rare")
    }
    cells_right = {shares: [_published(one) for one in of] for shares, of in populations.items()}

    def told(rng: np.random.Generator) -> Told:
        for shares, of in populations.items():
            number = int(rng.integers(2))
            population = of[number]
            one, other = (_drawn(population, rng, groups, model) for model in (0, 1))
            found = differences.gaps([one], [other], resamples=_RESAMPLES, seed=0)
            first, second = (_at(population, run, model) for model, run in ((0, one), (1, other)))
            for metric in differences.COMPARED:
                kind = f"gap in {metric.replace('_', ' ')} of two sets of images, {shares}"
                truth = first[metric] - second[metric]
                yield kind, found[metric].low, found[metric].high, truth
            points = sizes.specificity(sizes.Size("D5", "P6", ""), [one], _RESAMPLES).points
            published = float(cells_right[shares][number][one.labels].mean())
            truth = published - first["macro_specificity"]
            yield (
                f"published specificity minus macro specificity, {shares}",
                points.low,
                points.high,
                truth,
            )

    return told


def _drawn(population: Cells, rng: np.random.Generator, groups: int, model: int) -> Predictions:
    labels, group, p = population.draw(rng, groups)
    ids = [f"{number:05}" for number in range(len(labels))]
    names = [f"group {number:04}" for number in group]
    return Predictions(ids, names, ["test"] * len(ids), labels, p[model], _NAMES)


def _at(population: Cells, run: Predictions, model: int) -> dict[str, float]:
    """The population's figures of a model at the classes and class shares of a sample."""
    support = np.bincount(run.labels, minlength=_CLASSES)
    figures = class_figures.mean_figures(
        support > 0, None, ("balanced_accuracy", "macro_f1", "macro_specificity")
    )
    matrices = (population.rates[model] * support[:, None])[None, None]
    found = {name: float(of.squeeze()) for name, of in figures(matrices).items()}
    return {**found, "accuracy": float(population.accuracy[model])}


def _published(population: Cells) -> np.ndarray:
    """By class, the share of an image's cells that P6's formula counts as right, ``[k]``."""
    labels, p = population.whole
    wrong = 1 - np.eye(_CLASSES)[labels]
    share = np.round(wrong * (1 - p)).sum(axis=1) / (_CLASSES - 1)
    return np.array([share[labels == number].mean() for number in range(_CLASSES)])
