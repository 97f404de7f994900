"""From predictions to the size of a defect: what a figure gains on paper by it, in points.

A size is the figure with the defect minus the figure without it. Where both are of the same images
the interval is paired. It is by group where groups are known and, of several seeds, for other seeds
as well: what the last epoch leaves is a lottery, and a difference of two draws says little.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from sklearn import model_selection

from replication.comparison.differences import differences, gaps
from replication.measures import intervals, shares
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions

#: Figures that a defect is measured in, beside the specificity of D5.
METRICS = ("accuracy", "balanced_accuracy")
#: Images of a batch of P6, over which its specificity was averaged.
P6_BATCH = 16
#: What Keras adds to a denominator.
_EPSILON = 1e-7

_NAN = float("nan")
_NOTHING = Estimate(_NAN, _NAN, _NAN, 0, "not measured")


@dataclasses.dataclass(frozen=True)
class Size:
    """What one defect does to one figure.

    Attributes:
        defect: "D1" to "D8", see docs/defects.md.
        part: Of the papers, for example "P2"; "" where it is no part of them.
        what: The two sides in words.
        metric: "accuracy", "balanced_accuracy", "specificity" or "" where nothing was measured.
        with_defect: The figure with it, mean over the seeds; NaN where there is none.
        without: The figure without it.
        points: The first minus the second, a share of 1, with its interval.
        seeds: How many.
        groups: Of the images scored; 0 where they are not known.
        note: What varies, what limits it, or why it was not measured.
    """

    defect: str
    part: str
    what: str
    metric: str = ""
    with_defect: float = _NAN
    without: float = _NAN
    points: Estimate = _NOTHING
    seeds: int = 0
    groups: int = 0
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the interval tells it from 0, in words."""
        if not math.isfinite(self.points.value):
            return "not measured"
        if not math.isfinite(self.points.low):
            return "no interval"
        return "told apart" if self.points.told_from_zero else "not told apart"


def paired(
    size: Size, with_defect: Sequence[Predictions], without: Sequence[Predictions]
) -> list[Size]:
    """Sizes on the same images.

    Args:
        size: What is compared.
        with_defect: Test predictions, one a seed; rows may come in any order.
        without: Of the same images, with the same seeds.
    """
    first, second = ([_by_id(run) for run in runs] for runs in (with_defect, without))
    found = differences(first, second, confidence=0.95, resamples=2000, seed=0)
    return _of_metrics(size, first, second, found)


def apart(
    size: Size, with_defect: Sequence[Predictions], without: Sequence[Predictions]
) -> list[Size]:
    """Sizes where each side is scored on images of its own; arguments as of `paired`."""
    found = gaps(with_defect, without)
    return _of_metrics(size, with_defect, without, found)


def _of_metrics(
    size: Size,
    with_defect: Sequence[Predictions],
    without: Sequence[Predictions],
    found: dict[str, Estimate],
) -> list[Size]:
    return [
        dataclasses.replace(
            size,
            metric=metric,
            with_defect=float(np.mean([figure(run, metric) for run in with_defect])),
            without=float(np.mean([figure(run, metric) for run in without])),
            points=found[metric],
            seeds=len(with_defect),
            groups=len(set(without[0].groups) - {""}),
        )
        for metric in METRICS
    ]


def figure(run: Predictions, metric: str) -> float:
    """Returns accuracy or balanced accuracy (mean over the classes that have images).

    Args:
        run: Predictions of one role.
        metric: One of `METRICS`.
    """
    right = run.predicted == run.labels
    if metric == "accuracy":
        return float(right.mean())
    return float(np.mean([right[run.labels == c].mean() for c in np.unique(run.labels)]))


def _by_id(run: Predictions) -> Predictions:
    return run.take(sorted(range(len(run)), key=run.ids.__getitem__))


def watched(
    test: Predictions, by_epoch: np.ndarray, seed: int
) -> tuple[Predictions, Predictions, list[int]]:
    """D4: each test image as named after the epoch that it helped to choose, and that it did not.

    The test folder is halved, by group where groups are known. Each half chooses the epoch of its
    highest accuracy. An image is named "watched" by the model of its own half's epoch, as where
    the reported set chooses, and "held out" by that of the other half's.

    Args:
        test: The test role.
        by_epoch: int64 ``[epochs, n]``: the class that each epoch's weights name.
        seed: Of the halves.

    Returns:
        Both, as predictions without doubt, and the epochs (from 1) that the halves chose.
    """
    half = _halves(test, seed)
    right = by_epoch == test.labels
    # Of equal epochs the last one: the authors would have gone on.
    chosen = [
        len(right) - 1 - int(right[::-1, half == side].mean(axis=1).argmax()) for side in (0, 1)
    ]
    own, other = np.array(chosen)[half], np.array(chosen)[1 - half]
    rows = np.arange(len(test))
    return (
        naming(test, by_epoch[own, rows]),
        naming(test, by_epoch[other, rows]),
        [epoch + 1 for epoch in chosen],
    )


def _halves(test: Predictions, seed: int) -> np.ndarray:
    """The half of each image, 0 or 1; a group is in one half."""
    rows = np.arange(len(test))
    if all(test.groups):
        cut = model_selection.GroupKFold(2, shuffle=True, random_state=seed).split(
            rows, groups=np.array(test.groups)
        )
    else:
        cut = model_selection.KFold(2, shuffle=True, random_state=seed).split(rows)
    half = np.zeros(len(test), int)
    half[next(cut)[1]] = 1
    return half


def naming(test: Predictions, classes: np.ndarray) -> Predictions:
    """Returns predictions of the same images that name these classes without doubt.

    Args:
        test: Any predictions.
        classes: int64 ``[n]``.
    """
    return dataclasses.replace(test, probabilities=np.eye(len(test.class_names))[classes])


def published_specificity(
    labels: np.ndarray, probabilities: np.ndarray, batch: int = P6_BATCH
) -> float:
    """D5: the figure that P6 calls specificity.

    Over the cells of one-hot labels and probabilities, rounded: cells that are 0 in both, among
    those that are 0 in the labels; of each batch, and the mean over batches, the last, smaller one
    counted like the others. An image with a probability above 0.5 in a wrong class fails one of
    ``k - 1`` cells, so that the figure is near 1 whatever the model says.

    Args:
        labels: int64 ``[n]``.
        probabilities: float64 ``[n, k]``.
        batch: Images of a batch.
    """
    false, said_false = 1 - np.eye(probabilities.shape[1])[labels], 1 - probabilities
    cells = np.round(np.clip(false * said_false, 0, 1)).sum(axis=1)
    of_batches = [
        cells[start : start + batch].sum() / (false[start : start + batch].sum() + _EPSILON)
        for start in range(0, len(labels), batch)
    ]
    return float(np.mean(of_batches))


def specificity(size: Size, runs: Sequence[Predictions], resamples: int = 2000) -> Size:
    """D5 of P6: the published formula minus the mean one-against-rest specificity.

    Args:
        size: What is compared.
        runs: Test predictions, one a seed, in stored order, which makes the batches.
        resamples: Number of resamples.
    """
    first = runs[0]
    labels, count = first.labels, len(first.class_names)
    starts = np.arange(0, len(first), P6_BATCH)
    of_class = np.eye(count)[labels]
    present = np.flatnonzero(of_class.any(axis=0))
    # Of each image the share of its cells that the published formula counts as right.
    cells = [
        np.round((1 - of_class) * (1 - run.probabilities)).sum(axis=1) / (count - 1) for run in runs
    ]

    def gap(weights: np.ndarray) -> dict[str, np.ndarray]:
        by_batch = np.add.reduceat(weights, starts, axis=1)
        of_runs = []
        for run, right in zip(runs, cells, strict=True):
            published = (np.add.reduceat(weights * right, starts, axis=1) / by_batch).mean(axis=1)
            spared = [
                (weights @ ((labels != c) & (run.predicted != c))) / (weights @ (labels != c))
                for c in present
            ]
            of_runs.append(published - np.mean(spared, axis=0))
        return {"specificity": np.stack(of_runs, axis=1)}

    once = gap(np.ones((1, len(first))))["specificity"][0]
    interval = intervals.percentile_bootstrap(gap, first.groups, resamples=resamples)["specificity"]
    low, high = shares.over_seeds(float(once.mean()), interval.low, interval.high, once)
    published = float(np.mean([published_specificity(labels, run.probabilities) for run in runs]))
    lowest = min(
        float(np.mean([(run.predicted != c)[labels != c].mean() for run in runs])) for c in present
    )
    words = interval.method + (f", and Student's over {len(runs)} seeds" if len(runs) > 1 else "")
    return dataclasses.replace(
        size,
        metric="specificity",
        with_defect=published,
        without=published - float(once.mean()),
        points=Estimate(float(once.mean()), float(low), float(high), len(first), words),
        seeds=len(runs),
        groups=len(set(first.groups) - {""}),
        note=f"{size.note} The lowest of a class is {100 * lowest:.1f} %.".strip(),
    )


def spread(size: Size, runs: Sequence[Predictions]) -> list[Size]:
    """D7: the standard deviation over seeds; one run that cannot be repeated is a draw of these.

    Args:
        size: What was trained.
        runs: Test predictions, one a seed.
    """
    sizes = []
    for metric in METRICS:
        values = [figure(run, metric) for run in runs]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else _NAN
        why = f"standard deviation of {len(values)} seeds; no interval of so few"
        sizes.append(
            dataclasses.replace(
                size,
                metric=metric,
                points=Estimate(deviation, _NAN, _NAN, len(runs[0]), why),
                seeds=len(values),
                groups=len(set(runs[0].groups) - {""}),
                note=f"{size.note} Seeds from {100 * min(values):.1f} to {100 * max(values):.1f} %."
                if len(values) > 1
                else "One seed tells no spread.",
            )
        )
    return sizes
