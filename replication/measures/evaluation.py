"""Every figure of a trained model, computed from its predictions file.

Areas and losses come from scikit-learn, what a confusion matrix holds from
`replication.measures.confusion`, the intervals from `replication.measures.intervals`; none of them
needs the model again.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn import metrics

from replication.measures import areas, class_figures, confusion, shares
from replication.measures.intervals import Estimate, Interval, wilson
from replication.measures.predictions import ROLES, Predictions, jsonable

__all__ = [
    "ROLES",
    "Estimate",
    "Predictions",
    "SeedSummary",
    "evaluate",
    "jsonable",
    "summarise_seeds",
    "wilson",
]


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


def _values(p: Predictions) -> dict[str, float]:
    """The figures themselves; of a single class its index follows the name, as in 'f1 3'."""
    classes = len(p.class_names)
    present = np.bincount(p.labels, minlength=classes) > 0
    figures = confusion.statistics(
        confusion.counts(p.labels, p.predicted, classes, np.ones((1, len(p)))),
        present,
        p.classes.severity,
        p.classes.severe,
    )
    (f1,) = figures.pop("f1")
    values = {name: float(value) for name, (value,) in figures.items()}
    # Rows of float32 add up to 1 within 1e-7 only; log loss is defined on exact ones.
    exact = p.probabilities / p.probabilities.sum(axis=1, keepdims=True)
    values["log_loss"] = float(metrics.log_loss(p.labels, exact, labels=list(range(classes))))
    areas_by_class = []
    for c in np.flatnonzero(present):
        positive, scores = p.labels == c, p.probabilities[:, c]
        roc_auc = math.nan if positive.all() else metrics.roc_auc_score(positive, scores)
        areas_by_class.append((roc_auc, metrics.average_precision_score(positive, scores)))
        values[f"f1 {c}"] = float(f1[c])
        values[f"roc_auc {c}"], values[f"pr_auc {c}"] = map(float, areas_by_class[-1])
    values["roc_auc_macro"], values["pr_auc_macro"] = map(float, np.mean(areas_by_class, axis=0))
    return values


#: What is averaged over the classes, each counting alike or by its images.
_MEANS = {
    "macro": ("precision", "sensitivity", "specificity", "f1"),
    "weighted": ("precision", "sensitivity", "f1"),
}

#: Figures over classes, by the interval that they get.
_OVER_CLASSES = (
    "balanced_accuracy",
    "quadratic_kappa",
    *(f"{mean}_{name}" for mean, names in _MEANS.items() for name in names),
)


def _over_classes(p: Predictions) -> list[str]:
    return [name for name in _OVER_CLASSES if name != "quadratic_kappa" or p.classes.ordered]


#: Figures of one class against the rest.
_OF_A_CLASS = ("sensitivity", "specificity", "ppv", "npv", "f1", "roc_auc", "pr_auc")

_NO_LOSS = "no interval: a mean without an upper end, which few images make"
_NO_PR_AUC = "no interval: none that was tried holds for few positive images"


def _class_intervals(
    scored: Sequence[Predictions], names: Sequence[str], **bootstrap: Any
) -> dict[str, Interval]:
    """Intervals of means over models of figures over classes."""
    first = scored[0]
    classes = len(first.class_names)
    present = np.bincount(first.labels, minlength=classes) > 0
    return class_figures.confusion_intervals(
        first.labels,
        np.stack([run.predicted for run in scored]),
        first.groups,
        class_figures.mean_figures(present, first.classes.severity, names),
        classes=classes,
        **bootstrap,
    )


def _roc_interval(
    scored: Sequence[Predictions], classes: Sequence[int], confidence: float
) -> Interval:
    """Of the mean ROC-AUC over models and classes; NaN where only one class has images."""
    first = scored[0]
    positives = np.array([first.labels == c for c in classes])
    if positives.all(axis=1).any():
        return Interval(math.nan, math.nan, "undefined: images of one class only")
    scores = np.array([[run.probabilities[:, c] for run in scored] for c in classes])
    return areas.roc_interval(scores, positives, first.groups, confidence)


def evaluate(
    predictions: Predictions, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of one model on one role, with an interval where one holds.

    Groups count as a whole where every group is known: crops of one field resemble each other. How
    each interval was made, or why there is none, is its `method`; how often each kind holds is in
    results/interval_coverage.csv. Figures over classes are those of other images with the same
    class shares. A class without an image has NaN figures, and means over classes leave it out
    (their `method` says so). The precision of a class that is never named is NaN alone, and 0 in a
    mean, as in scikit-learn.

    Args:
        predictions: Of one role, for example ``all_of_them.select("test")``.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        `Estimate` under 'accuracy', 'majority_baseline'
        (always naming the most frequent class of these images), 'balanced_accuracy', 'log_loss',
        'quadratic_kappa' (where the classes have an order of severity), 'roc_auc_macro',
        'pr_auc_macro', and where some classes are looked for 'hsil_plus_sensitivity' and
        'hsil_plus_specificity' (of Bethesda classes HSIL or SCC, named as either). Under
        'per_class' a dict for each class name: 'sensitivity', 'specificity', 'ppv', 'npv', 'f1',
        'roc_auc' and 'pr_auc' (one against the rest; average precision) and the int 'support'.
        Under 'macro' and 'weighted': 'precision', 'sensitivity', 'f1'; 'macro' has 'specificity'
        too. 'confusion_matrix' is a list of lists, rows true,
        and 'class_names' the list of its classes.

    Raises:
        ValueError: No predictions, or of several roles.

    Example:
        >>> builder = replication.prepare_images("pap_db4", "original", "drawn", "prepared")
        >>> spec = replication.feature_spec("mobilenetv2_035", source="none", size=32)
        >>> predictions = replication.train_head(replication.extract_features(builder, spec))
        >>> accuracy = replication.evaluate(predictions.select("test"))["accuracy"]
        >>> accuracy.count, bool(accuracy.low <= accuracy.value <= accuracy.high)
        (12, True)
    """
    p = _for_scoring(predictions)
    truth, named, names = p.labels, p.predicted, p.class_names
    scored = _Scored.of(p, confidence, resamples, seed)
    every = np.ones(len(p), bool)
    results: dict[str, Any] = {
        "class_names": list(names),
        "accuracy": scored.share(truth == named, every),
        "majority_baseline": scored.share(truth == np.bincount(truth).argmax(), every),
        "balanced_accuracy": scored.over_classes("balanced_accuracy"),
        "roc_auc_macro": scored.over_classes("roc_auc_macro"),
        "pr_auc_macro": scored.without_interval("pr_auc_macro"),
        "log_loss": scored.without_interval("log_loss"),
    }
    if p.classes.ordered:
        results["quadratic_kappa"] = scored.estimate("quadratic_kappa")
    if severe := p.classes.severe:
        truly, called = np.isin(truth, severe), np.isin(named, severe)
        results["hsil_plus_sensitivity"] = scored.share(called, truly)
        results["hsil_plus_specificity"] = scored.share(~called, ~truly)
    for mean, of_mean in _MEANS.items():
        results[mean] = {name: scored.over_classes(f"{mean}_{name}") for name in of_mean}
    results["per_class"] = {
        name: {**scored.of_class(c), "support": int((truth == c).sum())}
        for c, name in enumerate(names)
    }
    matrix = metrics.confusion_matrix(truth, named, labels=list(range(len(names))))
    results["confusion_matrix"] = matrix.tolist()
    return results


@dataclasses.dataclass(frozen=True)
class _Scored:
    """One model on one role: its figures, and the intervals of those that are no shares."""

    predictions: Predictions
    values: dict[str, float]
    intervals: dict[str, Interval]
    confidence: float

    @classmethod
    def of(cls, p: Predictions, confidence: float, resamples: int, seed: int) -> Self:
        present = np.unique(p.labels).tolist()
        names = [*_over_classes(p), *(f"f1 {c}" for c in present)]
        intervals = _class_intervals(
            [p], names, confidence=confidence, resamples=resamples, seed=seed
        )
        intervals["roc_auc_macro"] = _roc_interval([p], present, confidence)
        for c in present:
            intervals[f"roc_auc {c}"] = _roc_interval([p], [c], confidence)
        return cls(p, _values(p), intervals, confidence)

    def share(self, hits: np.ndarray, among: np.ndarray) -> Estimate:
        return shares.share(hits, among, self.predictions.groups, self.confidence)

    def estimate(self, name: str) -> Estimate:
        interval, count = self.intervals[name], len(self.predictions)
        return Estimate(self.values[name], interval.low, interval.high, count, interval.method)

    def over_classes(self, name: str) -> Estimate:
        """A mean over the classes, which says what it leaves out."""
        p, estimate = self.predictions, self.estimate(name)
        absent = [name for c, name in enumerate(p.class_names) if not (p.labels == c).any()]
        if not absent:
            return estimate
        method = f"{estimate.method}; left out, having no image: {', '.join(absent)}"
        return dataclasses.replace(estimate, method=method)

    def without_interval(self, name: str) -> Estimate:
        method = _NO_LOSS if name == "log_loss" else _NO_PR_AUC
        return Estimate(self.values[name], math.nan, math.nan, len(self.predictions), method)

    def of_class(self, c: int) -> dict[str, Estimate]:
        """The figures of one class against the rest."""
        p = self.predictions
        truly, called = p.labels == c, p.predicted == c
        if not truly.any():
            method = f"undefined: no image of {p.class_names[c]}"
            return dict.fromkeys(_OF_A_CLASS, Estimate(math.nan, math.nan, math.nan, 0, method))
        figures = (
            self.share(called, truly),
            self.share(~called, ~truly),
            self.share(truly, called),
            self.share(~truly, ~called),
            self.estimate(f"f1 {c}"),
            self.estimate(f"roc_auc {c}"),
            self.without_interval(f"pr_auc {c}"),
        )
        return dict(zip(_OF_A_CLASS, figures, strict=True))


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A figure over several seeds of one model, on one test set.

    Attributes:
        mean: Over the seeds.
        minimum: Lowest seed.
        maximum: Highest seed.
        deviation: Standard deviation over the seeds (n - 1); NaN for one seed.
        low: Lower end of the interval of the mean of these seeds, for other images.
        high: Upper end of it.
        over_seeds: Half the width of Student's 95 % interval over the seeds, for other seeds on
            these images; NaN for one seed.
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
    over_seeds: float
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

    The interval is of these seeds: what the same trained models would score on other images, by
    group where groups are known. What other seeds would score is another question, which few seeds
    answer badly: `SeedSummary.over_seeds`.

    Args:
        runs: One for each seed, of one role; rows may come in any order.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        A summary under 'accuracy', 'balanced_accuracy', 'macro_f1', 'roc_auc_macro', of classes in
        order of severity 'quadratic_kappa' and, where some are looked for,
        'hsil_plus_sensitivity' and 'hsil_plus_specificity'.

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
    truth = first.labels
    by_class = ["balanced_accuracy", "macro_f1", *["quadratic_kappa"] * first.classes.ordered]
    intervals: dict[str, Interval] = _class_intervals(
        scored,
        by_class,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    intervals["roc_auc_macro"] = _roc_interval(scored, np.unique(truth).tolist(), confidence)
    whole = np.ones(count, bool)
    proportions = {"accuracy": ([run.predicted == truth for run in scored], whole)}
    if severe := first.classes.severe:
        called = [np.isin(run.predicted, severe) for run in scored]
        truly = np.isin(truth, severe)
        proportions["hsil_plus_sensitivity"] = called, truly
        proportions["hsil_plus_specificity"] = [~one for one in called], ~truly
    counts = dict.fromkeys(intervals, count)
    for name, (hits, among) in proportions.items():
        share = shares.share(np.mean(hits, axis=0), among, first.groups, confidence)
        intervals[name], counts[name] = Interval(share.low, share.high, share.method), share.count
    wanted = ["accuracy", *by_class[:2], "roc_auc_macro", *by_class[2:]]
    wanted += [name for name in proportions if name not in wanted]
    by_seed, summaries = [_values(run) for run in scored], {}
    for name in wanted:
        values, interval = np.array([figures[name] for figures in by_seed]), intervals[name]
        mean = float(values.mean())
        summaries[name] = SeedSummary(
            mean=mean,
            minimum=float(values.min()),
            maximum=float(values.max()),
            deviation=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
            low=float(np.fmin(interval.low, mean)) if math.isfinite(interval.low) else math.nan,
            high=float(np.fmax(interval.high, mean)) if math.isfinite(interval.high) else math.nan,
            over_seeds=shares.student_half_width(values, confidence),
            seeds=len(scored),
            count=counts[name],
            method=f"of {'this seed' if len(scored) == 1 else f'these {len(scored)} seeds'}: "
            f"{interval.method}",
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
