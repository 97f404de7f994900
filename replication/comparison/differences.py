"""Differences in figures: paired on the same images, or gaps of two sets of images."""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import confusion_matrix

from replication.measures import class_figures, shares
from replication.measures.intervals import Estimate, Interval
from replication.measures.predictions import Predictions

#: What is compared, see `replication.measures.names`.
COMPARED = ("accuracy", "balanced_accuracy", "macro_f1")


def differences(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """First minus second, run by run; with several seeds for other seeds as well.

    Args:
        first: Runs of one candidate, one a seed, on the same images in the same order.
        second: Runs of another one, with the same seeds.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        By metric of `COMPARED`, with its interval.
    """
    labels, groups, classes = first[0].labels, first[0].groups, len(first[0].class_names)
    one, other = (np.stack([run.predicted for run in runs]) for runs in (first, second))
    present = np.bincount(labels, minlength=classes) > 0
    figures = class_figures.mean_figures(present, None, COMPARED)
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
    gaps_by_metric = {}
    for name in COMPARED:
        gaps = by_seed[0][name] - by_seed[1][name]
        value, interval = float(gaps.mean()), intervals[name]
        low, high = shares.over_seeds(value, interval.low, interval.high, gaps, confidence)
        method = f"paired, of one seed: {interval.method}"
        if len(gaps) > 1:
            method = f"paired: {interval.method}, and Student's over {len(gaps)} seeds"
        gaps_by_metric[name] = Estimate(value, float(low), float(high), len(labels), method)
    return gaps_by_metric


def gaps(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """First minus second, each on images of its own; with several seeds for other seeds as well.

    The distances to the ends of both intervals add up as independent errors do.

    Source: G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures",
    Stat. Med. 27 (2008) 1693-1702.

    Args:
        first: Runs on some images, one a seed.
        second: Runs on others, with the same seeds.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        By metric of `COMPARED`, with its interval.
    """
    sides = [_of_own_images(runs, confidence, resamples, seed) for runs in (first, second)]
    found = {}
    for name in COMPARED:
        (one, a), (other, b) = (side[name] for side in sides)
        by_seed = one - other
        value = float(by_seed.mean())
        low = value - math.hypot(one.mean() - a.low, b.high - other.mean())
        high = value + math.hypot(a.high - one.mean(), other.mean() - b.low)
        low, high = shares.over_seeds(value, low, high, by_seed, confidence)
        count = len(first[0]) + len(second[0])
        method = f"two sets of images: {a.method}; {b.method}"
        method += f"; and Student's over {len(by_seed)} seeds" if len(by_seed) > 1 else ""
        found[name] = Estimate(value, float(low), float(high), count, method)
    return found


def _of_own_images(
    runs: Sequence[Predictions], confidence: float, resamples: int, seed: int
) -> dict[str, tuple[np.ndarray, Interval]]:
    """By metric each run's figure, and the interval of their mean."""
    labels, groups, classes = runs[0].labels, runs[0].groups, len(runs[0].class_names)
    predicted = np.stack([run.predicted for run in runs])
    figures = class_figures.mean_figures(np.bincount(labels, minlength=classes) > 0, None, COMPARED)
    found = class_figures.confusion_intervals(
        labels,
        predicted,
        groups,
        figures,
        classes=classes,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    right = (predicted == labels).mean(axis=0)
    accuracy = shares.share(right, np.ones(len(labels), bool), groups, confidence)
    found["accuracy"] = Interval(accuracy.low, accuracy.high, accuracy.method)
    by_seed = figures(_matrices(labels, predicted, classes))
    return {name: (by_seed[name], found[name]) for name in COMPARED}


def majority(run: Predictions) -> tuple[str, dict[str, float]]:
    """The most frequent class, and what always naming it would score.

    Args:
        run: On any images.

    Returns:
        Its name, and its figure by metric of `COMPARED`.
    """
    classes = len(run.class_names)
    counts = np.bincount(run.labels, minlength=classes)
    most = int(counts.argmax())
    figures = class_figures.mean_figures(counts > 0, None, COMPARED)
    always = figures(_matrices(run.labels, np.full((1, len(run)), most), classes))
    return run.class_names[most], {name: float(of[0]) for name, of in always.items()}


def _matrices(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix of each model, float64 ``[m, 1, k, k]``."""
    every = np.arange(classes)
    matrices = [confusion_matrix(labels, one, labels=every) for one in predicted]
    return np.array(matrices, float)[:, None]
