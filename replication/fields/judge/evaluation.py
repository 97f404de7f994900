"""How well whole fields are read: every figure on annotated nuclei, with an interval.

A nucleus is found if a kept ROI has its middle within a radius of it, one ROI for one nucleus. It
is read right if it is found and named its class. Fields are drawn with replacement for the
intervals, since the nuclei of one field resemble each other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from replication.fields.judge.counts import (
    MATCH_RADIUS,
    AnnotatedField,
    FieldCounts,
    field_counts,
    hits_by_score,
)
from replication.fields.judge.curves import Curves, ratio
from replication.fields.judge.results import (
    NOT_FOUND,
    UNANNOTATED,
    Curve,
    Evaluation,
    Figure,
    plural,
)
from replication.fields.judge.truth import labels_of
from replication.measures import shares
from replication.measures.intervals import Interval, percentile_bootstrap
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

#: False positives per field at which recall is read off. LUNA16's 1/8 to 8 suit scans with one
#: nodule or two; a field of a smear holds tens of nuclei.
RATES = (1, 2, 4, 8, 16, 32)

#: Where the band around the FROC curve stands, false positives per field.
_BAND = np.geomspace(0.1, 1000, 81)

#: Figures whose resamples do not hold the truth often enough (results/interval_coverage.csv).
_NO_INTERVAL = {
    "average_precision": "no interval: too little is known of how often one would hold",
}


def evaluate(
    fields: Sequence[AnnotatedField],
    *,
    threshold: float,
    complete: bool,
    match_radius: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Measures what was found against truth.

    Figures at the threshold rest on the best matching there is (`matching.match`), curves on
    matching by score (`matching.match_by_score`), which may find a nucleus less.

    Args:
        fields: Annotated fields.
        threshold: Score of a detection at least; what `AnnotatedField.cells` were kept at.
        complete: Whether every cell of these fields is annotated. If not, figures that count false
            positives are marked unreliable.
        match_radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.
        resamples: Of the bootstrap over fields.
        seed: Of the bootstrap.

    Raises:
        PapError: If there are no fields, or the radius is not above 0.
    """
    if not fields:
        raise PapError("evaluation: expected annotated fields, got none")
    if match_radius is not None and not match_radius > 0:
        raise PapError(f"match radius {match_radius:g}: expected pixels above 0")
    counts = [field_counts(field, threshold, match_radius) for field in fields]
    classes, labels = counts[0].classes, labels_of(counts[0].classes)
    at_threshold = figures_at_threshold(counts, complete=complete, resamples=resamples, seed=seed)
    over_thresholds, curve = _over_thresholds(
        fields, counts, match_radius, complete=complete, resamples=resamples, seed=seed
    )
    return Evaluation(
        complete=complete,
        threshold=threshold,
        match_radius=MATCH_RADIUS if match_radius is None else match_radius,
        match_radius_of="the field as read" if match_radius is None else "the file",
        fields=len(fields),
        megapixels=sum(one.megapixels for one in counts),
        detections=sum(one.detections for one in counts),
        annotated=dict(zip(labels, _sum(one.annotated for one in counts).tolist(), strict=True)),
        figures=(*at_threshold, *over_thresholds),
        rows=labels,
        columns=(*classes.names, NOT_FOUND),
        confusion=_confusion(counts),
        curve=curve,
        classes=classes,
    )


def figures_at_threshold(
    counts: Sequence[FieldCounts], *, complete: bool, resamples: int = 2000, seed: int = 0
) -> tuple[Figure, ...]:
    """Returns the figures that need no other threshold, cheap enough for a sweep.

    Args:
        counts: Of each field.
        complete: Whether every cell of these fields is annotated.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    statistic = _at_threshold(counts)
    intervals = _intervals(statistic, counts, resamples, seed)
    once = statistic(np.ones((1, len(counts))))
    # Each field alone, for what is counted in it.
    alone = statistic(np.eye(len(counts)))
    return tuple(
        _figure(
            what,
            float(once[what.name][0]),
            _counted(alone[what.name], what.sizes)
            if what.sizes is not None
            else intervals[what.name],
            complete,
        )
        for what in _described_at_threshold(counts)
    )


def _counted(shares_of_fields: np.ndarray, sizes: np.ndarray) -> Interval:
    """Of a share of nuclei or ROIs, from its value in each field and how many it is a share of."""
    sizes = np.asarray(sizes, float)
    hits = np.where(sizes > 0, np.nan_to_num(shares_of_fields) * sizes, 0.0)
    return shares.interval(shares.share_by_unit(hits, sizes), "fields")


def _over_thresholds(
    fields: Sequence[AnnotatedField],
    counts: Sequence[FieldCounts],
    match_radius: float | None,
    *,
    complete: bool,
    resamples: int,
    seed: int,
) -> tuple[tuple[Figure, ...], Curve | None]:
    """Returns the figures that sum all thresholds up, and the curve; None without a nucleus."""
    scores = [field.detections.scores for field in fields]
    hits = [hits_by_score(field, match_radius) for field in fields]
    nuclei = [int(one.annotated.sum()) for one in counts]
    curves = Curves.of(scores, hits, nuclei)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        at_rates, band = (curves.recall_at(weights, rates) for rates in (RATES, _BAND))
        return {
            "average_precision": curves.average_precision(weights),
            **{f"recall_at_{rate}": at_rates[:, i] for i, rate in enumerate(RATES)},
            "mean_recall": at_rates.mean(axis=1),
            **{_band(i): band[:, i] for i in range(len(_BAND))},
        }

    intervals = _intervals(statistic, counts, resamples, seed)
    values = {name: float(of[0]) for name, of in statistic(np.ones((1, len(fields)))).items()}
    # The bootstrap thins the thresholds out; the value itself is exact.
    pooled = Curves.of([np.concatenate(scores)], [np.concatenate(hits)], [sum(nuclei)], points=None)
    values["average_precision"] = float(pooled.average_precision(np.ones((1, 1)))[0])
    figures = tuple(
        _figure(what, values[what.name], intervals[what.name], complete)
        for what in _described_over_thresholds(sum(nuclei))
    )
    return figures, _curve(curves, intervals) if sum(nuclei) else None


def _intervals(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]],
    counts: Sequence[FieldCounts],
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    groups = [f"field {number}" for number in range(len(counts))]
    nuclei = [int(one.annotated.sum()) for one in counts]
    misfits = [one.detections - int(one.found.sum()) for one in counts]
    held = [of for of in (nuclei, misfits) if any(of)]
    return percentile_bootstrap(
        statistic, groups, sizes=np.array(held) if held else None, resamples=resamples, seed=seed
    )


def _band(number: int) -> str:
    return f"band {number}"


def _at_threshold(
    counts: Sequence[FieldCounts],
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The figures at the threshold, as functions of how often each field is drawn."""
    annotated, reachable, found = (
        np.array([getattr(one, name) for one in counts], float)
        for name in ("annotated", "reachable", "found")
    )
    detections = np.array([one.detections for one in counts], float)
    megapixels = np.array([one.megapixels for one in counts])
    by_chance = np.array([one.covered * one.annotated.sum() for one in counts])
    matrices = _named(counts)
    classes = counts[0].classes
    severe, mild = _looked_for(classes)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        by_label, found_by_label = weights @ annotated, weights @ found
        nuclei, hits, kept = by_label.sum(1), found_by_label.sum(1), weights @ detections
        figures = {
            "recall": ratio(hits, nuclei),
            "recall_reachable": ratio(hits, (weights @ reachable).sum(1)),
            "recall_by_chance": ratio(weights @ by_chance, nuclei),
            "precision": ratio(hits, kept),
            "f1": ratio(2 * hits, nuclei + kept),
            "false_positives_per_field": ratio(kept - hits, weights.sum(1)),
            "false_positives_per_megapixel": ratio(kept - hits, weights @ megapixels),
        }
        for i, label in enumerate(labels_of(classes)):
            figures[f"found {label}"] = ratio(found_by_label[:, i], by_label[:, i])
        if matrices is not None:
            matrix = np.tensordot(weights, matrices, axes=1)
            for i, label in enumerate(classes.names):
                figures[f"sensitivity {label}"] = ratio(matrix[:, i, i], by_label[:, i])
            if severe:
                name = classes.positive_name
                right = matrix[:, severe][:, :, severe].sum((1, 2))
                figures[f"sensitivity {name}"] = ratio(right, by_label[:, severe].sum(1))
                others = matrix[:, mild]
                right = others[:, :, mild].sum((1, 2))
                figures[f"specificity {name}"] = ratio(right, others.sum((1, 2)))
        return figures

    return statistic


def _looked_for(classes: Classes) -> tuple[list[int], list[int]]:
    """Positions of the classes that are looked for, and of the others; none where nobody said."""
    severe = classes.severe
    return severe, [n for n in range(len(classes.names)) if severe and n not in severe]


@dataclasses.dataclass(frozen=True)
class _Described:
    """What a figure is, before its value."""

    name: str
    words: str
    count: int
    unit: str = "share"
    missing: str = "no such nucleus is annotated"
    counts_false_positives: bool = False
    #: Nuclei or ROIs of each field, each of which is in or out; None = no such share.
    sizes: np.ndarray | None = None


def _described_at_threshold(counts: Sequence[FieldCounts]) -> Iterable[_Described]:
    by_label = np.array([one.annotated for one in counts])
    by_field = {
        "nuclei": by_label.sum(axis=1),
        "reachable": np.array([one.reachable.sum() for one in counts]),
        "kept": np.array([one.detections for one in counts]),
    }
    annotated = by_label.sum(axis=0)
    nuclei, reachable, kept = (int(of.sum()) for of in by_field.values())
    yield _Described("recall", "Nuclei found (recall of stage 1)", nuclei, sizes=by_field["nuclei"])
    yield _Described(
        "recall_reachable",
        "Nuclei found, of those that an ROI can be centred on",
        reachable,
        missing="no ROI can be centred on a nucleus",
        sizes=by_field["reachable"],
    )
    yield _Described(
        "recall_by_chance",
        "Nuclei within the radius of a kept ROI, were they scattered anywhere in their field",
        nuclei,
    )
    yield _Described(
        "precision",
        "Kept ROIs that are a nucleus (precision of stage 1)",
        kept,
        missing="no ROI was kept",
        counts_false_positives=True,
        sizes=by_field["kept"],
    )
    yield _Described(
        "f1", "F1 of stage 1", 0, missing="no nucleus and no kept ROI", counts_false_positives=True
    )
    for unit, count in (("field", len(counts)), ("megapixel", 0)):
        name, words = f"false_positives_per_{unit}", f"False positives per {unit}"
        yield _Described(name, words, count, unit=f"per {unit}", counts_false_positives=True)
    classes = counts[0].classes
    for label, count, sizes in zip(labels_of(classes), annotated.tolist(), by_label.T, strict=True):
        yield _Described(f"found {label}", f"{label} nuclei found", count, sizes=sizes)
    if (named := _named(counts)) is not None:
        for label, count, sizes in zip(classes.names, annotated.tolist(), by_label.T, strict=False):
            words = f"{label} nuclei found and named {label}"
            yield _Described(f"sensitivity {label}", words, count, sizes=sizes)
        yield from _described_looked_for(classes, by_label, named)


def _described_looked_for(
    classes: Classes, by_label: np.ndarray, named: np.ndarray
) -> Iterable[_Described]:
    severe, mild = _looked_for(classes)
    if not severe:
        return
    looked_for, others = (
        [classes.names[number] for number in members] for members in (severe, mild)
    )
    yield _Described(
        f"sensitivity {classes.positive_name}",
        f"{' and '.join(looked_for)} nuclei found and named {' or '.join(looked_for)}",
        int(by_label[:, severe].sum()),
        sizes=by_label[:, severe].sum(axis=1),
    )
    # Of found ones alone: a nucleus that nobody saw was not named rightly.
    yield _Described(
        f"specificity {classes.positive_name}",
        f"{' and '.join(others)} nuclei named neither {' nor '.join(looked_for)}, of those found",
        int(named[:, mild].sum()),
        missing=f"no {' or '.join(others)} nucleus was found",
        sizes=named[:, mild].sum(axis=(1, 2)),
    )


def _described_over_thresholds(nuclei: int) -> Iterable[_Described]:
    yield _Described(
        "average_precision",
        "Average precision of stage 1, over all thresholds",
        nuclei,
        counts_false_positives=True,
    )
    for rate in RATES:
        words = f"Nuclei found with {plural(rate, 'false positive')} per field"
        yield _Described(f"recall_at_{rate}", words, nuclei, counts_false_positives=True)
    rates = f"{', '.join(map(str, RATES[:-1]))} and {RATES[-1]}"
    words = f"Nuclei found, mean at {rates} false positives per field"
    yield _Described("mean_recall", words, nuclei, counts_false_positives=True)


def _figure(what: _Described, value: float, interval: Interval, complete: bool) -> Figure:
    reliable = complete or not what.counts_false_positives
    note = "" if reliable else UNANNOTATED
    low, high, method = interval.low, interval.high, interval.method.replace("group", "field")
    if what.name in _NO_INTERVAL:
        low, high, method = math.nan, math.nan, _NO_INTERVAL[what.name]
    return Figure(
        name=what.name,
        words=what.words,
        unit=what.unit,
        value=value,
        low=low,
        high=high,
        count=what.count,
        reliable=reliable,
        note=note if math.isfinite(value) else what.missing,
        method=method,
    )


def _named(counts: Sequence[FieldCounts]) -> np.ndarray | None:
    """`FieldCounts.named` of each field, int64 `[fields, 6, 4]`; None without stage 2."""
    named = [one.named for one in counts if one.named is not None]
    return np.array(named) if len(named) == len(counts) else None


def _confusion(counts: Sequence[FieldCounts]) -> list[list[int]] | None:
    named = _named(counts)
    if named is None:
        return None
    missed = _sum(one.annotated - one.found for one in counts)
    return np.column_stack([named.sum(axis=0), missed]).tolist()


def _curve(curves: Curves, intervals: dict[str, Interval]) -> Curve:
    once = np.ones((1, len(curves.nuclei)))
    false_positives = _rounded(curves.false_positives(once)[0])
    # Beyond its end the curve says nothing.
    end = max(false_positives, default=0.0)
    band = [number for number, rate in enumerate(_BAND) if rate <= end]
    return Curve(
        thresholds=_rounded(curves.thresholds),
        false_positives=false_positives,
        recall=_rounded(curves.recall(once)[0]),
        precision=_rounded(curves.precision(once)[0]),
        band_false_positives=_rounded(_BAND[band]),
        band_low=[intervals[_band(number)].low for number in band],
        band_high=[intervals[_band(number)].high for number in band],
    )


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 6).tolist()


def _sum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(arrays), axis=0)
