"""How stride, threshold and suppression radius move recall, and what they cost.

One score map a stride serves every threshold and radius, and an ROI is named once, however many
settings keep it.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures

import numpy as np
import pandas as pd

from replication.fields.find import scanner
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.find.stages import Stages
from replication.fields.judge.counts import AnnotatedField, Detections, FieldCounts, field_counts
from replication.fields.judge.evaluation import figures_at_threshold
from replication.fields.judge.results import Figure
from replication.fields.judge.truth import Nuclei
from replication.fields.read.field import Field


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """One way to read a field.

    Attributes:
        stride: Pixels as read from one ROI to the next.
        radius: Of suppression, pixels as read.
        threshold: Stage-1 score of a detection at least.
    """

    stride: int
    radius: float
    threshold: float


#: The defaults of `replication.scan`.
DEFAULT = Setting(stride=25, radius=50.0, threshold=0.5)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a setting finds and costs.

    Attributes:
        stride: Pixels as read from one ROI to the next.
        radius: Of suppression, pixels as read.
        threshold: Stage-1 score of a detection at least.
        recall: Nuclei found.
        recall_low: Lower end of its 95 % interval over fields; NaN for one field.
        recall_high: Upper end.
        recall_by_chance: Nuclei that lie within the radius of a kept ROI if they lie anywhere.
        precision: Kept ROIs that are a nucleus; NaN where none was kept.
        precision_reliable: Whether every cell is annotated, so that precision means something.
        rois_per_field: That stage 1 scores.
        kept_per_field: That stage 2 names.
        stage1_seconds: Per field, decoding left out.
        stage2_seconds: Per field: the kept ROIs times the mean time of one.
        hsil_plus_sensitivity: HSIL and SCC nuclei, or those of what the classes declare to be
            positive, found and named one of these; NaN without any.
        hsil_plus_low: Lower end of its 95 % interval over fields.
        hsil_plus_high: Upper end.
        hsil_plus_specificity: Other nuclei named none of these, of those found; NaN without any.
        specificity_low: Lower end of its 95 % interval over fields.
        specificity_high: Upper end.
    """

    stride: int
    radius: float
    threshold: float
    recall: float
    recall_low: float
    recall_high: float
    recall_by_chance: float
    precision: float
    precision_reliable: bool
    rois_per_field: float
    kept_per_field: float
    stage1_seconds: float
    stage2_seconds: float
    hsil_plus_sensitivity: float
    hsil_plus_low: float
    hsil_plus_high: float
    hsil_plus_specificity: float
    specificity_low: float
    specificity_high: float

    @property
    def setting(self) -> Setting:
        """The way of reading that this row is of."""
        return Setting(self.stride, self.radius, self.threshold)


def sweep(
    fields: Iterable[tuple[Field, Nuclei]],
    stages: Mapping[int, Stages],
    *,
    radii: Sequence[float],
    thresholds: Sequence[float],
    pool: futures.Executor,
    complete: bool,
    match_radius: float | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Reads fields in every setting.

    Args:
        fields: Annotated fields; each is closed when it has been read.
        stages: Both networks for each stride.
        radii: Of suppression, pixels as read.
        thresholds: Stage-1 scores.
        pool: Its threads read blocks and run stage 1.
        complete: Whether every cell is annotated.
        match_radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.
        advance: Called after each field.

    Returns:
        A row a setting, by stride, radius and threshold.

    Raises:
        FieldError: If a field is damaged.
        PapError: If a nucleus lies outside its field.
    """
    sweeper = _Sweeper(stages, sorted(set(radii)), sorted(set(thresholds)), pool, match_radius)
    for field, nuclei in fields:
        with field:
            sweeper.read(field, nuclei)
        advance()
    return sweeper.rows(complete)


class _Sweeper:
    def __init__(
        self,
        stages: Mapping[int, Stages],
        radii: Sequence[float],
        thresholds: Sequence[float],
        pool: futures.Executor,
        match_radius: float | None,
    ) -> None:
        self._stages = dict(sorted(stages.items()))
        self._radii, self._thresholds = radii, thresholds
        self._pool, self._match_radius = pool, match_radius
        self._counts: dict[Setting, list[FieldCounts]] = collections.defaultdict(list)
        self._rois: dict[int, list[int]] = collections.defaultdict(list)
        self._seconds: dict[int, list[float]] = collections.defaultdict(list)
        self._named, self._naming = 0, 0.0

    def read(self, field: Field, nuclei: Nuclei) -> None:
        """Counts what every setting finds in a field."""
        lowest_detections: dict[tuple[int, float], tuple[Lattice, Detections]] = {}
        for stride, stages in self._stages.items():
            lattice = Lattice(field.width, field.height, stages.stage1.roi, stride)
            scores = self._scores(field, stages, lattice)
            for radius in self._radii:
                lowest = Detections.of_scores(
                    scores,
                    lattice,
                    threshold=self._thresholds[0],
                    radius=radius,
                    scale=field.scale,
                )
                lowest_detections[stride, radius] = lattice, lowest
        probabilities = self._name(field, lowest_detections.values())
        decision = next(iter(self._stages.values())).stage2.decision
        for (stride, radius), (lattice, lowest) in lowest_detections.items():
            for threshold in self._thresholds:
                kept = lowest.at(threshold)
                named = np.array([probabilities[place] for place in _places(kept)])
                named = named.reshape(-1, len(decision.labels))
                cells = Cells(
                    *(kept.x, kept.y, kept.scores, named),
                    hsil_plus=decision.hsil_plus(named),
                    abstain=decision.abstains(named),
                    classes=decision.classes,
                )
                one = AnnotatedField(field.name, kept, nuclei, lattice, field.scale, cells)
                counts = field_counts(one, threshold, self._match_radius)
                self._counts[Setting(stride, radius, threshold)].append(counts)

    def rows(self, complete: bool) -> list[Row]:
        """Sums up what was read."""
        each = self._naming / max(1, self._named)
        return [self._row(setting, each, complete) for setting in sorted(self._counts)]

    def _scores(self, field: Field, stages: Stages, lattice: Lattice) -> np.ndarray:
        if lattice.stride not in self._seconds:
            # The first call traces the graph, which is no cost of a field.
            scanner.score_map(field, stages, pool=self._pool)
        seconds = collections.defaultdict[str, float](float)
        scores = scanner.score_map(field, stages, pool=self._pool, seconds=seconds)
        self._seconds[lattice.stride].append(seconds["stage1"])
        self._rois[lattice.stride].append(lattice.rois)
        return scores

    def _name(
        self, field: Field, lowest_detections: Iterable[tuple[Lattice, Detections]]
    ) -> dict[tuple[float, float], np.ndarray]:
        """Names every ROI that any setting keeps; ROIs of several strides may be the same."""
        places = sorted({place for _, lowest in lowest_detections for place in _places(lowest)})
        stages = next(iter(self._stages.values()))
        half = stages.stage1.roi / 2
        lefts, tops = (np.array(places).reshape(-1, 2).T / field.scale - half).round().astype(int)
        if places and not self._named:
            stages.stage2.probabilities(field, tops[:1], lefts[:1])
        start = time.perf_counter()
        named = stages.stage2.probabilities(field, tops, lefts)
        self._naming += time.perf_counter() - start
        self._named += len(places)
        return dict(zip(places, named, strict=True))

    def _row(self, setting: Setting, each: float, complete: bool) -> Row:
        counts = self._counts[setting]
        figures = {one.name: one for one in figures_at_threshold(counts, complete=complete)}
        recall = figures["recall"]
        positive = counts[0].classes.positive_name
        severe, mild = (
            figures.get(f"{what} {positive}", _NOTHING) for what in ("sensitivity", "specificity")
        )
        kept = float(np.mean([one.detections for one in counts]))
        return Row(
            **dataclasses.asdict(setting),
            recall=recall.value,
            recall_low=recall.low,
            recall_high=recall.high,
            recall_by_chance=figures["recall_by_chance"].value,
            precision=figures["precision"].value,
            precision_reliable=figures["precision"].reliable,
            rois_per_field=float(np.mean(self._rois[setting.stride])),
            kept_per_field=kept,
            stage1_seconds=float(np.mean(self._seconds[setting.stride])),
            stage2_seconds=kept * each,
            hsil_plus_sensitivity=severe.value,
            hsil_plus_low=severe.low,
            hsil_plus_high=severe.high,
            hsil_plus_specificity=mild.value,
            specificity_low=mild.low,
            specificity_high=mild.high,
        )


#: In place of figures of what nobody looks for.
_NOTHING = Figure("", "", "share", math.nan, math.nan, math.nan, 0, True, "", "")


def _places(detections: Detections) -> list[tuple[float, float]]:
    return list(zip(detections.x.tolist(), detections.y.tolist(), strict=True))


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as CSV.

    Args:
        rows: From `sweep`.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    return pd.DataFrame(rows, columns=names).to_csv(index=False, float_format="%.6g", na_rep="nan")
