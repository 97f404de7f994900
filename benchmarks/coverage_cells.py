"""Intervals that the project prints, of samples whose truth is known, for `interval_coverage`."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tried_figures
from coverage_populations import Cells

from replication.measures import (
    areas,
    calibration,
    class_figures,
    intervals,
    shares,
    triage,
)
from replication.measures.intervals import Estimate

#: Resamples of each interval that has some; the project takes 2,000, whose ends lie farther out.
_RESAMPLES = 200

_OVER_CLASSES = (
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_specificity",
    "weighted_f1",
)

#: Figures that depend on how many images each class has.
_OF_SHARES = ("macro_f1", "macro_precision", "quadratic_kappa", "f1")

#: Where PPV and NPV are to hold.
_PREVALENCE = 0.05

#: Kind, seeds that the figure averages, both ends, truth.
Told = Iterator[tuple[str, int, float, float, float]]


def sampler(
    cells: Cells, parts: Sequence[str], seeds: Sequence[int], groups: int
) -> Callable[[np.random.Generator], Told]:
    """Draws a sample of so many groups and tells all its intervals.

    Args:
        cells: The population.
        parts: Which of `PARTS` are told.
        seeds: How many models a figure averages; the same sample serves all.
        groups: In a sample.
    """
    truths = _tried(*_first(cells))(np.ones((1, len(cells.whole[0])))) if "tried" in parts else {}
    single = _single_truths(cells)

    def told(rng: np.random.Generator) -> Told:
        labels, group, p = cells.draw(rng, groups)
        # Equal widths, so that the order of the names is that of the groups.
        names = np.char.add("group ", np.char.zfill(group.astype(str), 4))
        named = p.argmax(axis=-1)
        drawn = labels, group, p, named
        if "shares" in parts and 1 in seeds:
            yield from _of_one_model(drawn, single)
        for models in seeds:
            both = [*range(models), *range(cells.models, cells.models + models)]
            if "shares" in parts:
                yield from _accuracies(cells, drawn, names, models, named[both])
            for part in ("figures", "kappa"):
                if part in parts:
                    seed = int(rng.integers(2**31))
                    yield from _figures(cells, labels, names, models, named[both], seed, part)
            if "areas" in parts:
                yield from _areas(cells, labels, names, p[:models])
        if "tried" in parts and 1 in seeds:
            tried = intervals.percentile_bootstrap(
                _tried(p[0], labels), names, resamples=_RESAMPLES
            )
            for kind, found in tried.items():
                yield kind, 1, found.low, found.high, float(truths[kind][0])

    return told


def _first(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    labels, p = cells.whole
    return p, labels


def _shares_of_one(p: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each share of one model counts, and among which images."""
    named, sure, last = p.argmax(axis=1), p.max(axis=1) >= 0.8, p.shape[1] - 1
    every = np.ones(len(labels), bool)
    squares = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1) / 2
    return {
        "PPV of a class": (labels == last, named == last),
        "specificity of a class": (named != last, labels != last),
        "coverage of a threshold": (sure, every),
        "risk at a threshold": (named != labels, sure),
        "Brier score": (squares, every),
        "sensitivity": (named == last, labels == last),
    }


def _single_truths(cells: Cells) -> dict[str, float]:
    found = _shares_of_one(*_first(cells))
    return {kind: float(hits[among].mean()) for kind, (hits, among) in found.items()}


def _of_one_model(drawn: tuple, truths: dict[str, float]) -> Told:
    labels, group, p, _ = drawn
    told = {}
    for kind, (hits, among) in _shares_of_one(p[0], labels).items():
        if among.any():
            found = shares.share_by_unit(*shares.by_unit(hits, among, group))
            low, high = (found.low, found.high) if found.has_interval else (np.nan, np.nan)
            told[kind] = Estimate(found.value, low, high, found.count, "")
            if kind != "sensitivity":
                yield kind, 1, low, high, truths[kind]
    both = [told.get(kind) for kind in ("sensitivity", "specificity of a class")]
    if None not in both:
        at = triage.predictive_values(
            truths["sensitivity"], truths["specificity of a class"], _PREVALENCE
        )
        for number, kind in enumerate(("ppv", "npv")):
            got = triage._predictive_value(kind, *both, _PREVALENCE)
            yield f"{kind.upper()} at a prevalence", 1, got.low, got.high, float(at[number])


def _accuracies(
    cells: Cells, drawn: tuple, names: np.ndarray, models: int, both: np.ndarray
) -> Told:
    labels, group, _, _ = drawn
    right, last = both == labels, cells.classes - 1
    mean, every = right[:models].mean(axis=0), np.ones(len(labels), bool)
    for kind, among, truth in (
        ("accuracy", every, cells.accuracy[:models].mean()),
        ("sensitivity of a class", labels == last, cells.rates[:models, last, last].mean()),
    ):
        if among.any():
            found = shares.share_by_unit(*shares.by_unit(mean, among, group))
            low, high = (found.low, found.high) if found.has_interval else (np.nan, np.nan)
            yield kind, models, low, high, truth
    ends = shares.difference(right[:models], right[models:], names)
    other = cells.accuracy[cells.models : cells.models + models]
    gap = cells.accuracy[:models].mean() - other.mean()
    yield "difference in accuracy", models, ends.low, ends.high, gap


def _figures(
    cells: Cells,
    labels: np.ndarray,
    groups: np.ndarray,
    models: int,
    both: np.ndarray,
    seed: int,
    part: str,
) -> Told:
    support = np.bincount(labels, minlength=cells.classes)
    present = support > 0
    names = [*_OVER_CLASSES, *(f"f1 {c}" for c in np.flatnonzero(present)[-1:])]
    if part == "kappa":
        names = ["quadratic_kappa"]
    figures = class_figures.mean_figures(present, range(cells.classes), names)
    options = {"classes": cells.classes, "resamples": _RESAMPLES, "seed": seed}
    sides = [slice(0, models), slice(cells.models, cells.models + models)]

    def at(matrices: np.ndarray) -> dict[str, float]:
        return {name: float(of[0]) for name, of in figures(matrices[None]).items()}

    truths = [at(cells.rates[side] * support[:, None]) for side in sides]
    # At the sample's classes and the population's shares of them.
    population = at(cells.matrices[sides[0]] * present[:, None])
    found = class_figures.confusion_intervals(labels, both[:models], groups, figures, **options)
    for name, ends in found.items():
        kind = "F1 of a class" if name.startswith("f1 ") else name.replace("_", " ")
        yield kind, models, ends.low, ends.high, truths[0][name]
        if models == 1 and name.split(" ")[0] in _OF_SHARES:
            kind = f"tried: {kind} at the population's class shares"
            yield kind, models, ends.low, ends.high, population[name]
    if part == "kappa":
        return
    found = class_figures.difference_intervals(
        labels, both[:models], both[models:], groups, figures, **options
    )
    for name in ("balanced_accuracy", "macro_f1"):
        kind = f"difference in {name.replace('_', ' ')}"
        yield kind, models, found[name].low, found[name].high, truths[0][name] - truths[1][name]


def _areas(cells: Cells, labels: np.ndarray, groups: np.ndarray, p: np.ndarray) -> Told:
    present, last = np.bincount(labels, minlength=cells.classes) > 0, cells.classes - 1
    some, truth = np.flatnonzero(present), cells.areas[: len(p)].mean(axis=0)
    if len(some) < 2:
        return
    for kind, chosen in (("ROC-AUC, mean over classes", some), ("ROC-AUC", [last])):
        if present[last] or len(chosen) > 1:
            scores = np.array([p[:, :, c] for c in chosen])
            positives = np.array([labels == c for c in chosen])
            found = areas.roc_interval(scores, positives, groups)
            yield kind, len(p), found.low, found.high, truth[chosen].mean()


def _tried(p: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Figures that the project gives without an interval, resampled."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    numbers = calibration._bin_numbers(sure, calibration.BINS)
    loss = -np.log(np.clip(p[np.arange(len(p)), labels], np.finfo(float).eps, 1))
    last = p.shape[1] - 1

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            "tried: ECE": tried_figures.ece(sure - right, numbers, calibration.BINS, weights),
            "tried: AURC": tried_figures.aurc(sure, ~right, weights),
            "tried: log loss": weights @ loss / weights.sum(axis=1),
        }
        if (labels == last).any():
            found["tried: PR-AUC"] = tried_figures.pr_auc(weights, labels == last, p[:, last])
        return found

    return statistic


#: Parts of a sample of cells.
PARTS = ("shares", "figures", "kappa", "areas", "tried")
