"""Every figure of a trained model, computed from its predictions file.

The values come from scikit-learn, the intervals from `replication.intervals`, and none of them
needs the model again.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from replication.intervals import (
    Estimate,
    Interval,
    confusion_counts,
    confusion_statistics,
    looped,
    percentile_bootstrap,
    resampling_units,
    weighted_aucs,
    wilson,
)
from replication.predictions import ROLES, Predictions, jsonable
from tfds_pap.taxonomy import STAGE2_CLASSES

__all__ = [
    "ROLES",
    "Estimate",
    "Predictions",
    "SeedSummary",
    "bootstrap",
    "evaluate",
    "jsonable",
    "summarise_seeds",
    "wilson",
]


def bootstrap(
    predictions: Predictions,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of any statistic of the predictions.

    Groups are drawn whole where every group is known, images otherwise. This loops over resamples;
    `evaluate` has a faster way for its own figures.

    Args:
        predictions: Of one role.
        statistic: From labels (int64 ``[n]``) and probabilities (float64 ``[n, k]``) to a number;
            ``ValueError`` or NaN = undefined. Such resamples are dropped and counted in `method`.
        confidence: Between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        The statistic and its interval.

    Raises:
        ValueError: No predictions, or of several roles.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels, share = rng.integers(2, size=50), rng.random(50)
        >>> p = Predictions(map(str, range(50)), [""] * 50, ["test"] * 50, labels,
        ...     np.stack([1 - share, share], axis=1), ("background", "cell"))
        >>> estimate = bootstrap(p, lambda y, q: float((q.argmax(axis=1) == y).mean()))
        >>> estimate.low < estimate.value < estimate.high
        True
    """
    p = _for_scoring(predictions)
    loop = looped(lambda rows: statistic(p.labels[rows], p.probabilities[rows]))
    interval = percentile_bootstrap(
        loop, p.groups, confidence=confidence, resamples=resamples, seed=seed
    )["statistic"]
    value = float(loop(np.ones((1, len(p))))["statistic"][0])
    return _with_interval(value, interval, len(p))


def _for_scoring(predictions: Predictions) -> Predictions:
    """One role, sorted by id: the order of the rows must not move an interval."""
    if not len(predictions):
        raise ValueError("evaluation: expected predictions, got none")
    roles = sorted(set(predictions.splits))
    if len(roles) > 1:
        raise ValueError(
            f"evaluation: expected one split, got {', '.join(roles)}; select('test') first"
        )
    return predictions.take(sorted(range(len(predictions)), key=predictions.ids.__getitem__))


def _with_interval(value: float, interval: Interval, count: int) -> Estimate:
    return Estimate(float(value), interval.low, interval.high, count, interval.method)


def _severity(names: Sequence[str]) -> list[int]:
    """Class indices in order of severity; other classes are taken to be given in that order."""
    if set(names) == set(STAGE2_CLASSES):
        return [names.index(name) for name in STAGE2_CLASSES]
    return list(range(len(names)))


def _severe(names: Sequence[str]) -> list[int]:
    """The classes HSIL and SCC where the four Bethesda classes are told apart, else none."""
    return _severity(names)[2:] if set(names) == set(STAGE2_CLASSES) else []


def _normalised(predictions: Predictions) -> np.ndarray:
    # Rows of float32 add up to 1 within 1e-7 only; log loss is defined on exact ones.
    return predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)


def _values(p: Predictions) -> dict[str, float]:
    """The figures themselves, by scikit-learn. The names are those of `_fast`."""
    truth, named, scores, every = p.labels, p.predicted, p.probabilities, range(len(p.class_names))
    present = [c for c in every if (truth == c).any()]
    values = {"accuracy": metrics.accuracy_score(truth, named)}
    for mean in ("macro", "weighted"):
        figures = metrics.precision_recall_fscore_support(
            truth, named, labels=present, average=mean, zero_division=0
        )
        for name, value in zip(("precision", "sensitivity", "f1"), figures[:3], strict=True):
            values[f"{mean}_{name}"] = value
    values["balanced_accuracy"] = values["macro_sensitivity"]
    tables = metrics.multilabel_confusion_matrix(truth, named, labels=list(every))[present]
    negatives = tables[:, 0].sum(axis=1)
    values["macro_specificity"] = (
        (tables[:, 0, 0] / negatives).mean() if negatives.all() else math.nan
    )
    values["log_loss"] = metrics.log_loss(truth, _normalised(p), labels=list(every))
    same = len({*truth, *named}) == 1
    values["quadratic_kappa"] = (
        math.nan
        if same
        else metrics.cohen_kappa_score(
            truth, named, labels=_severity(p.class_names), weights="quadratic"
        )
    )
    f1 = metrics.f1_score(truth, named, labels=list(every), average=None, zero_division=0)
    for c in present:
        name, positive = p.class_names[c], truth == c
        values[f"f1 {name}"] = f1[c]
        values[f"pr_auc {name}"] = metrics.average_precision_score(positive, scores[:, c])
        values[f"roc_auc {name}"] = (
            math.nan if positive.all() else metrics.roc_auc_score(positive, scores[:, c])
        )
    for curve in ("roc_auc", "pr_auc"):
        values[f"{curve}_macro"] = np.mean([values[f"{curve} {p.class_names[c]}"] for c in present])
    severe = _severe(p.class_names)
    truly = np.isin(truth, severe)
    if severe:
        values["hsil_plus_sensitivity"] = (
            metrics.recall_score(truly, np.isin(named, severe)) if truly.any() else math.nan
        )
        values["hsil_plus_specificity"] = (
            math.nan if truly.all() else metrics.recall_score(~truly, ~np.isin(named, severe))
        )
    return {name: float(value) for name, value in values.items()}


def _fast(p: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The figures of `_values` as functions of resampling weights."""
    truth, named, scores, names = p.labels, p.predicted, p.probabilities, p.class_names
    present = np.bincount(truth, minlength=len(names)) > 0
    chosen = _normalised(p)[np.arange(len(p)), truth]
    loss = -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1))
    severe = _severe(names)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        confusion = confusion_counts(truth, named, len(names), weights)
        figures = confusion_statistics(confusion, present, _severity(names))
        f1 = figures.pop("f1")
        figures["log_loss"] = weights @ loss / weights.sum(axis=1)
        curves = {"roc_auc": [], "pr_auc": []}
        for c in np.flatnonzero(present):
            figures[f"f1 {names[c]}"] = f1[:, c]
            areas = weighted_aucs(weights, truth == c, scores[:, c])
            for curve, area in zip(curves, areas, strict=True):
                figures[f"{curve} {names[c]}"] = area
                curves[curve].append(area)
        for curve, areas in curves.items():
            figures[f"{curve}_macro"] = np.mean(areas, axis=0)
        if severe:
            mild = [c for c in range(len(names)) if c not in severe]
            for figure, members in (("sensitivity", severe), ("specificity", mild)):
                rows = confusion[:, members]
                above, below = rows[:, :, members].sum(axis=(1, 2)), rows.sum(axis=(1, 2))
                figures[f"hsil_plus_{figure}"] = np.divide(
                    above, below, out=np.full(len(above), np.nan), where=below > 0
                )
        return figures

    return statistic


def evaluate(
    predictions: Predictions, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of one model on one role, each with an interval.

    Proportions get Wilson intervals, which take images as independent; all else gets the bootstrap,
    which draws whole groups where every group is known. Crops of one field resemble each other, so
    with known groups 'accuracy_by_group' gives the accuracy once more with the group bootstrap:
    quote that one. A class without an image has NaN figures, and means over classes leave it out
    (their `method` says so). The precision of a class that is never named is NaN alone, and 0 in a
    mean, as in scikit-learn.

    Args:
        predictions: Of one role, for example ``all_of_them.select("test")``.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `Estimate` under 'accuracy', 'accuracy_by_group' (known groups only), 'majority_baseline'
        (always naming the most frequent class of these images), 'balanced_accuracy', 'log_loss',
        'quadratic_kappa' (classes in order of severity), 'roc_auc_macro', 'pr_auc_macro',
        'hsil_plus_sensitivity' and 'hsil_plus_specificity' (HSIL or SCC, named as either; the four
        Bethesda classes only). Under 'per_class' a dict for each class name: 'sensitivity',
        'specificity', 'ppv', 'npv', 'f1', 'roc_auc' and 'pr_auc' (one against the rest; average
        precision) and the int 'support'. Under 'macro' and 'weighted': 'precision', 'sensitivity',
        'f1'; 'macro' has 'specificity' too. 'confusion_matrix' is a list of lists, rows true,
        and 'class_names' the list of its classes.

    Raises:
        ValueError: No predictions, or of several roles.
    """
    p = _for_scoring(predictions)
    names, count, truth, named = p.class_names, len(p), p.labels, p.predicted
    every = list(range(len(names)))
    intervals = percentile_bootstrap(
        _fast(p), p.groups, confidence=confidence, resamples=resamples, seed=seed
    )
    values = _values(p)
    tables = metrics.multilabel_confusion_matrix(truth, named, labels=every)
    present = [c for c in every if (truth == c).any()]
    absent = [names[c] for c in every if c not in present]
    units, kind = resampling_units(p.groups)
    wilson_method = "Wilson"
    if kind == "groups":
        wilson_method += f", as if the images of {units.max() + 1} groups were independent"

    def proportion(successes: int, total: int) -> Estimate:
        value = successes / total if total else math.nan
        method = wilson_method if total else "undefined: no image to count"
        return Estimate(float(value), *wilson(successes, total, confidence), int(total), method)

    def resampled(name: str, mean: bool = False) -> Estimate:
        estimate = _with_interval(values[name], intervals[name], count)
        if mean and absent:
            note = f"{estimate.method}; left out, having no image: {', '.join(absent)}"
            estimate = dataclasses.replace(estimate, method=note)
        return estimate

    results: dict[str, Any] = {
        "class_names": list(names),
        "accuracy": proportion(int((truth == named).sum()), count),
        "majority_baseline": proportion(int(np.bincount(truth).max()), count),
    }
    if kind == "groups":
        results["accuracy_by_group"] = resampled("accuracy")
    for name in ("balanced_accuracy", "roc_auc_macro", "pr_auc_macro"):
        results[name] = resampled(name, mean=True)
    for name in ("quadratic_kappa", "log_loss"):
        results[name] = resampled(name)
    severe = _severe(names)
    if severe:
        truly, called = np.isin(truth, severe), np.isin(named, severe)
        results["hsil_plus_sensitivity"] = proportion((truly & called).sum(), truly.sum())
        results["hsil_plus_specificity"] = proportion((~truly & ~called).sum(), (~truly).sum())
    for mean, figures in (
        ("macro", ("precision", "sensitivity", "specificity", "f1")),
        ("weighted", ("precision", "sensitivity", "f1")),
    ):
        results[mean] = {name: resampled(f"{mean}_{name}", mean=True) for name in figures}
    results["per_class"] = {}
    for c, name in enumerate(names):
        (tn, fp), (fn, tp) = tables[c].tolist()
        if c in present:
            figures = {
                "sensitivity": proportion(tp, tp + fn),
                "specificity": proportion(tn, tn + fp),
                "ppv": proportion(tp, tp + fp),
                "npv": proportion(tn, tn + fn),
                **{key: resampled(f"{key} {name}") for key in ("f1", "roc_auc", "pr_auc")},
            }
        else:
            keys = ("sensitivity", "specificity", "ppv", "npv", "f1", "roc_auc", "pr_auc")
            nothing = Estimate(math.nan, math.nan, math.nan, 0, f"undefined: no image of {name}")
            figures = dict.fromkeys(keys, nothing)
        results["per_class"][name] = {**figures, "support": int(tp + fn)}
    results["confusion_matrix"] = metrics.confusion_matrix(truth, named, labels=every).tolist()
    return results


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A figure over several seeds of one model, on one test set.

    Attributes:
        mean: Over the seeds.
        minimum: Lowest seed.
        maximum: Highest seed.
        deviation: Standard deviation over the seeds (n - 1); NaN for one seed.
        low: Lower end of the interval of the mean.
        high: Upper end of the interval of the mean.
        seeds: Number of seeds.
        count: Number of images behind the figure.
        method: How the interval was made, in words.
    """

    mean: float
    minimum: float
    maximum: float
    deviation: float
    low: float
    high: float
    seeds: int
    count: int
    method: str


def summarise_seeds(
    runs: Sequence[Predictions],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, SeedSummary]:
    """Mean, spread and interval over the seeds of one model on the same test images.

    One seed: the bootstrap over groups where they are known, else over images; a proportion without
    groups gets Wilson. Several seeds: seeds are drawn with replacement and the images (or groups)
    with them, all seeds seeing the same drawn images. The interval of a proportion is stretched to
    hold Wilson's interval at the mean, so that neither few groups nor a perfect score flatters.
    Two or three seeds say little about the next one, whatever the interval.

    Args:
        runs: One for each seed, of one role; rows may come in any order.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        A summary under 'accuracy', 'balanced_accuracy', 'macro_f1', 'roc_auc_macro',
        'quadratic_kappa' and, for the four Bethesda classes, 'hsil_plus_sensitivity' and
        'hsil_plus_specificity'.

    Raises:
        ValueError: No runs, or runs on different images, labels, groups or classes; it names the
            first id that differs.
    """
    if not runs:
        raise ValueError("summarise_seeds: expected at least one run, got none")
    scored = [_for_scoring(run) for run in runs]
    for number, run in enumerate(scored[1:], start=1):
        _same_images(scored[0], run, number)
    first, count = scored[0], len(scored[0])
    proportions = {"accuracy": count}
    wanted = ["accuracy", "balanced_accuracy", "macro_f1", "roc_auc_macro", "quadratic_kappa"]
    if severe := _severe(first.class_names):
        truly = np.isin(first.labels, severe)
        wanted += ["hsil_plus_sensitivity", "hsil_plus_specificity"]
        proportions["hsil_plus_sensitivity"] = int(truly.sum())
        proportions["hsil_plus_specificity"] = int((~truly).sum())
    fast, by_seed = [_fast(run) for run in scored], [_values(run) for run in scored]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        figures = [one(weights) for one in fast]
        return {name: np.stack([f[name] for f in figures], axis=1) for name in wanted}

    intervals = percentile_bootstrap(
        statistic,
        first.groups,
        seeds=len(scored),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    summaries = {}
    for name in wanted:
        values = np.array([figures[name] for figures in by_seed])
        mean, total = float(values.mean()), proportions.get(name, count)
        low, high, method = intervals[name].low, intervals[name].high, intervals[name].method
        if name in proportions and total:
            score = wilson(min(mean * total, total), total, confidence)
            if len(scored) == 1 and resampling_units(first.groups)[1] == "images":
                low, high, method = *score, "Wilson"
            else:
                low, high = np.fmin(low, score[0]), np.fmax(high, score[1])
                method += "; stretched to hold Wilson at the mean"
        summaries[name] = SeedSummary(
            mean=mean,
            minimum=float(values.min()),
            maximum=float(values.max()),
            deviation=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
            low=float(low),
            high=float(high),
            seeds=len(scored),
            count=total,
            method=method,
        )
    return summaries


def _same_images(first: Predictions, other: Predictions, number: int) -> None:
    start = f"summarise_seeds: expected the same test images, but run {number} differs from run 0"
    if first.class_names != other.class_names:
        raise ValueError(f"{start} in its classes: {other.class_names}, not {first.class_names}")
    for image in sorted({*first.ids} ^ {*other.ids})[:1]:
        holder = 0 if image in first.ids else number
        raise ValueError(f"{start}: first at id {image!r}, which only run {holder} has")
    for name in ("labels", "groups", "splits"):
        rows = zip(first.ids, getattr(first, name), getattr(other, name), strict=True)
        for image, a, b in rows:
            if a != b:
                raise ValueError(f"{start} in its {name}: first at id {image!r}, {b!r}, not {a!r}")
