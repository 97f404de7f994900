"""Populations of images in groups, with a known truth, for `interval_coverage`."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from sklearn import metrics

#: Groups whose figures pass for the truth.
_POPULATION = 20_000


@dataclasses.dataclass(frozen=True)
class World:
    """How groups (slides, fields) differ.

    Attributes:
        median: Images of the group in the middle; with a spread of 0 all have about as many.
        spread: Standard deviation of the logarithm of a group's images.
        ease: Spread of how easy groups are, in logits; some groups are far off where tails are
            heavy.
        stain: Spread of what a group's stain adds to each class, in logits.
        tails: Student's degrees of freedom of both.
        mixed: Dirichlet's parameter of a group's classes, all together: below 1 nearly every group
            is of one class.
        rare_groups: Share of the groups that hold the rare class.
        rare_share: Beta's two parameters of its share of the images of these.
    """

    median: float
    spread: float
    ease: float
    stain: float
    tails: float
    mixed: float
    rare_groups: float
    rare_share: tuple[float, float]


WORLDS = {
    # The one on which the weight of the worst in `shares` was chosen.
    "like": World(6, 0.7, 0.7, 0.7, np.inf, 1.2, 0.06, (1, 2)),
    # Some slides give one image and some a hundred, nearly all of one class; some fail as a whole.
    "unequal": World(5, 1.1, 1.0, 0.5, 4, 0.4, 0.1, (2, 3)),
    # Groups of one size hold a little of every class and hardly differ.
    "mixed": World(8, 0.0, 0.3, 0.3, np.inf, 6, 0.25, (1, 8)),
}


class Cells:
    """Images of several classes, named by several models.

    Args:
        world: How groups differ.
        classes: How many.
        rare: Whether the last class is rare.
        hard: What a model has to tell the classes by; the higher, the fewer errors.
        models: Most trained models that a figure averages; as many others are compared with them.
        seed: Of the models and the population.
    """

    def __init__(
        self, world: World, classes: int, rare: bool, hard: float, models: int, seed: int
    ) -> None:
        self.world, self.classes, self.rare, self.hard = world, classes, rare, hard
        self.models = models
        rng = np.random.default_rng([seed, classes, rare, round(10 * hard)])
        self._bias = rng.normal(0, 0.35, (2 * models, classes))
        self._skill = rng.normal(0, 0.35, 2 * models)
        labels, _, p = self.draw(rng, _POPULATION)
        named = p.argmax(axis=-1)
        cells = (np.arange(2 * models)[:, None] * classes + labels) * classes + named
        #: Confusion matrices of the population, ``[2 models, k, k]``.
        self.matrices = (
            np.bincount(cells.ravel(), minlength=2 * models * classes**2)
            .reshape(-1, classes, classes)
            .astype(float)
        )
        self.rates = self.matrices / self.matrices.sum(axis=2, keepdims=True)
        self.accuracy = (named == labels).mean(axis=1)
        #: ROC-AUC of each of the first models and class, ``[models, k]``.
        self.areas = np.array(
            [
                [metrics.roc_auc_score(labels == c, one[:, c]) for c in range(classes)]
                for one in p[:models]
            ]
        )
        #: Labels and the first model's probabilities of the population.
        self.whole = labels, p[0]

    def draw(
        self, rng: np.random.Generator, groups: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels ``[n]``, groups ``[n]`` and probabilities ``[2 models, n, k]``."""
        k, world = self.classes, self.world
        sizes = world.median * np.exp(rng.normal(0, world.spread, groups)) + rng.random(groups)
        group = np.repeat(np.arange(groups), np.clip(sizes.astype(int), 1, 150))
        n = len(group)
        labels = (rng.random(n)[:, None] > self._mixtures(rng, groups).cumsum(axis=1)[group]).sum(
            axis=1
        )
        labels = labels.clip(0, k - 1)
        # Centred at the population's middle, so that a heavy tail is a group that fails.
        stain, ease = _spread(rng, world.tails, (groups, k)), _spread(rng, world.tails, groups)
        far = np.minimum(np.abs(np.subtract.outer(np.arange(k), np.arange(k))), 2)
        logits = -0.5 * self.hard * far[labels] + world.stain * stain[group]
        logits += 0.6 * _gumbel(rng, (n, k))
        logits[np.arange(n), labels] += 0.4 * self.hard + world.ease * ease[group]
        logits = logits + self._bias[:, None] + 0.4 * _gumbel(rng, (len(self._skill), n, k))
        logits[:, np.arange(n), labels] += self._skill[:, None]
        p = np.exp(1.3 * (logits - logits.max(axis=-1, keepdims=True)))
        return labels, group, p / p.sum(axis=-1, keepdims=True)

    def _mixtures(self, rng: np.random.Generator, groups: int) -> np.ndarray:
        """Shares of the classes in each group, ``[groups, k]``."""
        k, world = self.classes, self.world
        if not self.rare:
            return _dirichlet(rng, np.full(k, world.mixed / k), groups)
        prior = 0.6 ** np.arange(k - 1)
        parts = _dirichlet(rng, 1.25 * world.mixed * prior / prior.sum(), groups)
        last = rng.beta(*world.rare_share, size=groups) * (rng.random(groups) < world.rare_groups)
        return np.hstack([parts * (1 - last[:, None]), last[:, None]])


def _dirichlet(rng: np.random.Generator, parameters: np.ndarray, size: int) -> np.ndarray:
    return np.ones((size, 1)) if len(parameters) == 1 else rng.dirichlet(parameters, size=size)


def _spread(rng: np.random.Generator, tails: float, shape: int | Sequence[int]) -> np.ndarray:
    return rng.normal(size=shape) if np.isinf(tails) else rng.standard_t(tails, size=shape)


def _gumbel(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return -np.log(rng.standard_exponential(shape))
