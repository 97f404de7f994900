"""Populations with a known truth, and samples of them, for `interval_coverage`."""

import types
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from finetune import selection
from finetune.trials import Answers
from replication import abstention, areas, calibration, class_figures, intervals, shares, triage
from replication.fields.curves import Curves
from replication.intervals import weighted_aucs

#: Groups whose figures pass for the truth.
_POPULATION = 20_000

#: Resamples of each interval that has some; the project takes 2,000.
_RESAMPLES = 300

_OVER_CLASSES = (
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_specificity",
    "weighted_f1",
    "quadratic_kappa",
)

#: Where PPV and NPV are to hold.
_PREVALENCE = 0.05

Told = Iterator[tuple[str, float, float, float]]


class Cells:
    """Images of several classes, named by several models.

    Args:
        classes: How many.
        rare: Whether the last class is rare.
        hard: What a model has to tell the classes by; the higher, the fewer errors.
        models: Trained models that a figure averages; as many others are compared with them.
        parts: Which of `OF_CELLS` are told.
    """

    def __init__(
        self, classes: int, rare: bool, hard: float, models: int, parts: Sequence[str]
    ) -> None:
        self._parts = {*parts}
        self.classes, self.rare, self.hard, self.models = classes, rare, hard, models
        rng = np.random.default_rng([classes, rare, models, int(10 * hard)])
        self._bias = rng.normal(0, 0.35, (2 * models, classes))
        self._skill = rng.normal(0, 0.35, 2 * models)
        labels, _, p = self._draw(np.random.default_rng(5), _POPULATION)
        named = p.argmax(axis=-1)
        matrices = np.zeros((2 * models, classes, classes))
        for matrix, one in zip(matrices, named, strict=True):
            np.add.at(matrix, (labels, one), 1.0)
        self._matrices = matrices
        self._rates = matrices / matrices.sum(axis=2, keepdims=True)
        self._accuracy = (named == labels).mean(axis=1)
        once = np.ones((1, len(labels)))
        self._areas = np.mean(
            [
                [weighted_aucs(once, labels == c, one[:, c])[0][0] for c in range(classes)]
                for one in p[:models]
            ],
            axis=0,
        )
        first = p[0]
        sure, right = first.max(axis=1), named[0] == labels
        self._brier = ((first - np.eye(classes)[labels]) ** 2).sum(axis=1).mean()
        self._answered = (sure >= 0.8).mean()
        self._risk = (~right)[sure >= 0.8].mean()
        self._tried = {name: float(of[0]) for name, of in _tried(first, labels)(once).items()}

    def _draw(
        self, rng: np.random.Generator, groups: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels ``[n]``, groups ``[n]`` and probabilities ``[2 models, n, k]``."""
        k = self.classes
        sizes = 1 + rng.geometric(1 / 8, size=groups)
        if self.rare:
            prior = 0.6 ** np.arange(k - 1)
            parts = np.ones((groups, 1))
            if k > 2:
                parts = rng.dirichlet(1.5 * prior / prior.sum(), size=groups)
            last = rng.beta(1, 2, size=groups) * (rng.random(groups) < 0.06)
            parts = np.hstack([parts * (1 - last[:, None]), last[:, None]])
        else:
            parts = rng.dirichlet(np.full(k, 1.2 / k), size=groups)
        group = np.repeat(np.arange(groups), sizes)
        n = len(group)
        labels = (rng.random(n)[:, None] > parts.cumsum(axis=1)[group]).sum(axis=1).clip(0, k - 1)
        stain, ease = rng.normal(0, 0.7, (groups, k)), rng.normal(0, 0.7, groups)
        far = np.minimum(np.abs(np.subtract.outer(np.arange(k), np.arange(k))), 2)
        logits = -0.5 * self.hard * far[labels] + stain[group] + 0.6 * rng.gumbel(size=(n, k))
        logits[np.arange(n), labels] += 0.4 * self.hard + ease[group]
        logits = logits + self._bias[:, None] + 0.4 * rng.gumbel(size=(len(self._skill), n, k))
        logits[:, np.arange(n), labels] += self._skill[:, None]
        p = np.exp(1.3 * (logits - logits.max(axis=-1, keepdims=True)))
        return labels, group, p / p.sum(axis=-1, keepdims=True)

    def sampler(self, groups: int) -> Callable[[np.random.Generator], Told]:
        """Draws a sample of so many groups and tells all its intervals."""
        return lambda rng: self._told(rng, groups)

    def _told(self, rng: np.random.Generator, count: int) -> Told:
        labels, group, p = self._draw(rng, count)
        groups, last = [f"group {one}" for one in group], self.classes - 1
        named, every = p.argmax(axis=-1), np.ones(len(labels), bool)
        present = np.bincount(labels, minlength=self.classes) > 0
        if "shares" in self._parts:
            yield from self._shares(labels, groups, p, named, every, present)
        if "figures" in self._parts:
            yield from self._figures(labels, groups, named, present, int(rng.integers(2**31)))
        some = np.flatnonzero(present)
        if len(some) > 1 and "areas" in self._parts:
            for kind, chosen in (("ROC-AUC, mean over classes", some), ("ROC-AUC", [last])):
                if present[last] or len(chosen) > 1:
                    scores = np.array([p[: self.models, :, c] for c in chosen])
                    positives = np.array([labels == c for c in chosen])
                    found = areas.roc_interval(scores, positives, groups)
                    yield kind, found.low, found.high, self._areas[chosen].mean()
        if self.models == 1 and "tried" in self._parts:
            tried = intervals.percentile_bootstrap(
                _tried(p[0], labels), groups, resamples=_RESAMPLES
            )
            for kind, found in tried.items():
                yield kind, found.low, found.high, self._tried[kind]

    def _shares(self, labels, groups, p, named, every, present) -> Told:
        models, last = self.models, self.classes - 1
        right = (named[:models] == labels).mean(axis=0)
        rates, first = self._rates[:models], self._matrices[0]
        found = {
            "accuracy": (right, every, self._accuracy[:models].mean()),
            "sensitivity of a class": (right, labels == last, rates[:, last, last].mean()),
            "PPV of a class": (
                labels == last,
                named[0] == last,
                first[last, last] / first[:, last].sum(),
            ),
            "specificity of a class": (
                named[0] != last,
                labels != last,
                first[:last, :last].sum() / first[:last].sum(),
            ),
            "coverage of a threshold": (p[0].max(axis=1) >= 0.8, every, self._answered),
            "risk at a threshold": (
                named[0] != labels,
                p[0].max(axis=1) >= 0.8,
                self._risk,
            ),
            "Brier score": (
                ((p[0] - np.eye(self.classes)[labels]) ** 2).sum(axis=1) / 2,
                every,
                self._brier / 2,
            ),
        }
        told = {}
        for kind, (hits, among, truth) in found.items():
            if among.any():
                told[kind] = shares.share(hits, among, groups)
                yield kind, told[kind].low, told[kind].high, truth
        if present[last] and present[:last].any():
            sensitivity = shares.share(named[0] == last, labels == last, groups)
            truth = triage.predictive_values(
                self._rates[0, last, last], found["specificity of a class"][2], _PREVALENCE
            )
            for number, kind in enumerate(("ppv", "npv")):
                got = triage._predictive_value(
                    kind, sensitivity, told["specificity of a class"], _PREVALENCE
                )
                yield f"{kind.upper()} at a prevalence", got.low, got.high, float(truth[number])
        ends = shares.difference(named[:models] == labels, named[models:] == labels, groups)
        gap = self._accuracy[:models].mean() - self._accuracy[models:].mean()
        yield "difference in accuracy", ends.low, ends.high, gap

    def _figures(self, labels, groups, named, present, seed) -> Told:
        models, support = self.models, np.bincount(labels, minlength=self.classes)
        names = [*_OVER_CLASSES, *(f"f1 {c}" for c in np.flatnonzero(present)[-1:])]
        figures = class_figures.mean_figures(present, range(self.classes), names)
        options = {"classes": self.classes, "resamples": _RESAMPLES, "seed": seed}
        truths = [
            {name: float(of[0]) for name, of in figures((side * support[:, None])[None]).items()}
            for side in (self._rates[:models], self._rates[models:])
        ]
        found = class_figures.confusion_intervals(
            labels, named[:models], groups, figures, **options
        )
        for name, ends in found.items():
            kind = "F1 of a class" if name.startswith("f1 ") else name.replace("_", " ")
            yield kind, ends.low, ends.high, truths[0][name]
        found = class_figures.difference_intervals(
            labels, named[:models], named[models:], groups, figures, **options
        )
        for name in ("balanced_accuracy", "macro_f1"):
            gap = truths[0][name] - truths[1][name]
            kind = f"difference in {name.replace('_', ' ')}"
            yield kind, found[name].low, found[name].high, gap


def _tried(p: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Figures that the project gives without an interval, resampled."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    numbers = calibration._bin_numbers(sure, calibration.BINS)
    loss = -np.log(np.clip(p[np.arange(len(p)), labels], np.finfo(float).eps, 1))
    last = p.shape[1] - 1

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            "tried: ECE": calibration._weighted_ece(sure - right, numbers, 15, weights),
            "tried: AURC": abstention._accumulated(sure, ~right, weights)[2],
            "tried: log loss": weights @ loss / weights.sum(axis=1),
        }
        if (labels == last).any():
            found["tried: PR-AUC"] = weighted_aucs(weights, labels == last, p[:, last])[1]
        return found

    return statistic


def fields(count: int) -> Callable[[np.random.Generator], Told]:
    """Whole fields with nuclei that are found or not, and ROIs that are none."""

    def draw(rng: np.random.Generator, size: int) -> Curves:
        nuclei = 3 + rng.negative_binomial(2, 0.08, size)
        recall, misfits = rng.beta(8, 2, size), rng.gamma(1.5, 20, size)
        found = rng.binomial(nuclei, recall)
        wrong = rng.poisson(misfits)
        shift = rng.normal(0, 0.5, size)
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

    whole = draw(np.random.default_rng(1), 4_000)
    once = np.ones((1, 4_000))
    truth = {name: float(of[0]) for name, of in figures(whole)(once).items()}
    recall = float(whole.hits[:, -1].sum() / whole.nuclei.sum())
    kept = whole.hits[:, -1] + whole.misfits[:, -1]
    precision = float(whole.hits[:, -1].sum() / kept.sum())

    def told(rng: np.random.Generator) -> Told:
        curves = draw(rng, count)
        hits = curves.hits[:, -1]
        for kind, among, value in (
            ("fields: recall", curves.nuclei, recall),
            ("fields: precision", hits + curves.misfits[:, -1], precision),
        ):
            found = shares.share_by_unit(hits, among)
            yield kind, found.low, found.high, value
        resampled = intervals.percentile_bootstrap(
            figures(curves), [f"field {n}" for n in range(count)], resamples=_RESAMPLES
        )
        for kind, ends in resampled.items():
            yield kind, ends.low, ends.high, truth[kind]

    return told


def seeds_alone(groups: int) -> Callable[[np.random.Generator], Told]:
    """Differences of two models over seeds and groups, where seeds spread by 0.13."""

    def told(rng: np.random.Generator) -> Told:
        for seeds in (2, 3, 5):
            skill = rng.normal(0.05, 0.13, seeds)
            chance = np.clip(0.6 + rng.normal(0, 0.15, groups), 0.05, 0.95)
            images = np.repeat(np.arange(groups), 8)
            hits = rng.random((seeds, len(images))) < np.clip(
                chance[images] + skill[:, None] - 0.05, 0, 1
            )
            other = rng.random((seeds, len(images))) < (chance[images] - 0.05)
            named = [f"group {one}" for one in images]
            ends = shares.difference(hits, other, named)
            gaps = (hits.mean(axis=1) - other.mean(axis=1)).astype(float)
            low, high = shares.over_seeds(gaps.mean(), ends.low, ends.high, gaps)
            yield f"difference over {seeds} seeds", low, high, 0.05
            half, mean = shares.student_half_width(hits.mean(axis=1)), hits.mean()
            truth = np.clip(chance[images], 0, 1).mean()
            yield f"Student's of {seeds} seeds", mean - half, mean + half, truth

    return told


def searches(groups: int) -> Callable[[np.random.Generator], Told]:
    """Searches among 30 configurations of equal true accuracy: best minus another one."""

    def told(rng: np.random.Generator) -> Told:
        field = np.repeat(np.arange(groups), 1 + rng.geometric(1 / 8, groups))
        n = len(field)
        hard = rng.normal(0, 0.7, groups)[field] + rng.normal(0, 1, n)
        own = rng.normal(0, 0.5, (30, groups))[:, field] + rng.normal(0, 0.8, (30, n))
        right = 1 + hard + own > 0
        labels = rng.integers(2, size=n)
        trials = tuple(
            types.SimpleNamespace(trial_id=f"{number:03}", epochs=1, order=number)
            for number in range(30)
        )
        answers = Answers(
            trials,
            labels,
            tuple(f"group {one}" for one in field),
            ("background", "cell"),
            np.where(right, labels, 1 - labels),
            np.zeros((30, n)),
        )
        best = trials[int(right.mean(axis=1).argmax())]
        found = selection.differences(answers, best, "accuracy", resamples=100)
        wide = [(one.low, one.high) for one in found.values()]
        # All at once: the one farthest from 0 decides.
        low, high = max(low for low, _ in wide), min(high for _, high in wide)
        yield "search: best minus all 29 others at once", low, high, 0.0
        half = n // 2
        first, second = (
            shares.share_by_unit(
                *shares.by_unit(right[0][part], np.ones(len(part), bool), field[part])
            )
            for part in (np.arange(half), np.arange(half, n))
        )
        yield "gap of two sets of images", *shares.independent_difference(first, second), 0.0

    return told


#: Parts of a sample of cells.
OF_CELLS = ("shares", "figures", "areas", "tried")

#: What is drawn besides, by the number of groups.
OTHERS = {"fields": fields, "seeds": seeds_alone, "searches": searches}

PARTS = (*OF_CELLS, *OTHERS)
