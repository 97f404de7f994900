"""What was found of one annotated field, counted: all that figures and their intervals need."""

import dataclasses

import numpy as np
from scipy.spatial import KDTree

from replication.fields.find import suppression
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.judge import matching
from replication.fields.judge.truth import Nuclei, labels_of
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

#: Farthest that a nucleus may lie from the middle of the ROI that found it, pixels as read. Half
#: the diagonal between ROIs at the default stride of 25 px is 17.7 px, so far off is the best ROI
#: at worst; and the nuclei that stage 1 is trained to find lie up to 14 px from the middle of
#: theirs (`tfds_pap.phantom.SCAN_JITTER`), so far off may be the one that scores highest.
MATCH_RADIUS = 32.0

#: Scores from here on are matched for curves; what a network puts below, nobody would keep.
LOWEST = 0.02

#: Points on which the area near detections is measured.
_GRID = 5_000


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """Places at which stage 1 sees a cell, one a cell.

    Attributes:
        x: Pixels of the file, float64 `[n]`.
        y: Pixels of the file, float64 `[n]`.
        scores: Probability of a cell, float64 `[n]`.
    """

    x: np.ndarray
    y: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def at(self, threshold: float) -> "Detections":
        """Returns those with this score or a higher one.

        Args:
            threshold: Compared at the precision of the scores of stage 1, float32.
        """
        chosen = self.scores >= np.float32(threshold)
        return Detections(self.x[chosen], self.y[chosen], self.scores[chosen])

    @classmethod
    def of_scores(
        cls,
        scores: np.ndarray,
        lattice: Lattice,
        *,
        threshold: float,
        radius: float,
        scale: float = 1.0,
    ) -> "Detections":
        """Suppresses a score map.

        Args:
            scores: float32 `[rows, columns]`, probability of a cell in each ROI.
            lattice: Where the ROIs stand.
            threshold: Score of a detection at least. A low one serves all above it: `at` gives just
                what suppression gives there.
            radius: Of suppression, pixels as read.
            scale: Pixels of the file per pixel as read.
        """
        rows, columns = suppression.keep(scores, threshold, radius, lattice.stride).T
        x, y = lattice.centres(rows, columns)
        return cls(x * scale, y * scale, scores[rows, columns].astype(np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedField:
    """What was found in a field, and what is there.

    Attributes:
        name: For messages.
        detections: After suppression, at a low threshold if curves are wanted.
        nuclei: The truth.
        lattice: Where the ROIs stood.
        scale: Pixels of the file per pixel as read.
        cells: The detections that a scan kept and named; None without stage 2.

    Raises:
        PapError: If a nucleus lies outside the field.
    """

    name: str
    detections: Detections
    nuclei: Nuclei
    lattice: Lattice
    scale: float = 1.0
    cells: Cells | None = None

    def __post_init__(self) -> None:
        # The size as read is rounded down, by less than a pixel as read.
        width, height = ((side + 1) * self.scale for side in self._size)
        outside = np.flatnonzero((self.nuclei.x > width) | (self.nuclei.y > height))
        if len(outside):
            x, y = (float(axis[outside[0]]) for axis in (self.nuclei.x, self.nuclei.y))
            size = " x ".join(f"{side * self.scale:.0f}" for side in self._size)
            raise PapError(
                f"{self.name}: a nucleus is annotated at ({x:g}, {y:g}), outside its {size} px"
            )

    @property
    def _size(self) -> tuple[int, int]:
        return self.lattice.width, self.lattice.height

    @property
    def megapixels(self) -> float:
        """Area, of the file's pixels."""
        return self.lattice.width * self.lattice.height * self.scale**2 / 1e6

    def radius(self, match_radius: float | None) -> float:
        """Returns the radius of matching in pixels of the file.

        Args:
            match_radius: The same; None takes `MATCH_RADIUS`, which is in pixels as read.
        """
        return MATCH_RADIUS * self.scale if match_radius is None else match_radius


@dataclasses.dataclass(frozen=True, eq=False)
class FieldCounts:
    """A field at one threshold, by label.

    Attributes:
        detections: Matched or not.
        megapixels: Area.
        covered: Share of the area within the radius of a detection.
        annotated: Nuclei of each of `labels_of` the classes, int64 `[l]`.
        reachable: Of these, within the radius of the middle of some ROI, int64 `[l]`.
        found: Of these, matched to a detection, int64 `[l]`.
        named: Of these, by the class that they were named, int64 `[l, k]`; None without stage 2.
        classes: Of stage 2.
    """

    detections: int
    megapixels: float
    covered: float
    annotated: np.ndarray
    reachable: np.ndarray
    found: np.ndarray
    named: np.ndarray | None
    classes: Classes


def field_counts(field: AnnotatedField, threshold: float, radius: float | None) -> FieldCounts:
    """Counts what was found of a field.

    Args:
        field: The field. Its cells count where it has any, else its detections at the threshold.
        threshold: Score of a detection at least.
        radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.
    """
    labels, classes = field.nuclei.label_ids, field.nuclei.classes
    count = len(labels_of(classes))

    def by_label(some: np.ndarray) -> np.ndarray:
        return np.bincount(some, minlength=count)

    kept = _kept(field, threshold)
    places, reach = _places(kept.x, kept.y), field.radius(radius)
    pairs = matched(field, threshold, radius)
    named = None
    if field.cells is not None:
        named = np.zeros((count, len(classes.names)), np.int64)
        np.add.at(named, (labels[pairs.nuclei], field.cells.class_ids[pairs.detections]), 1)
    return FieldCounts(
        detections=len(kept),
        megapixels=field.megapixels,
        covered=_covered(field, places, reach),
        annotated=by_label(labels),
        reachable=by_label(labels[reachable(field, reach)]),
        found=by_label(labels[pairs.nuclei]),
        named=named,
        classes=classes,
    )


def matched(field: AnnotatedField, threshold: float, radius: float | None) -> matching.Pairs:
    """Tells which nuclei were found, and by which cells.

    Args:
        field: The field. Its cells count where it has any, else its detections at the threshold.
        threshold: Score of a detection at least.
        radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.
    """
    kept, nuclei = _kept(field, threshold), field.nuclei
    places = _places(kept.x, kept.y)
    return matching.match(places, _places(nuclei.x, nuclei.y), field.radius(radius))


def _kept(field: AnnotatedField, threshold: float) -> Cells | Detections:
    return field.detections.at(threshold) if field.cells is None else field.cells


def reachable(field: AnnotatedField, radius: float) -> np.ndarray:
    """Tells which nuclei have the middle of some ROI within the radius, bool `[n]`.

    An ROI lies inside the field, and so cannot be centred on a nucleus at its edge.

    Args:
        field: The field.
        radius: Pixels of the file.
    """
    lattice, steps = field.lattice, []
    for axis, count in ((field.nuclei.x, lattice.columns), (field.nuclei.y, lattice.rows)):
        if not count:
            return np.zeros(len(field.nuclei), bool)
        place = axis / field.scale - lattice.roi / 2
        nearest = np.clip(np.round(place / lattice.stride), 0, count - 1) * lattice.stride
        steps.append(place - nearest)
    return np.hypot(*steps) * field.scale <= radius


def hits_by_score(field: AnnotatedField, radius: float | None) -> np.ndarray:
    """Tells which detections match a nucleus, each at its turn from the highest score down.

    Args:
        field: The field.
        radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.

    Returns:
        bool `[n]`.
    """
    detections, nuclei = field.detections, field.nuclei
    pairs = matching.match_by_score(
        _places(detections.x, detections.y),
        detections.scores,
        _places(nuclei.x, nuclei.y),
        field.radius(radius),
    )
    hits = np.zeros(len(detections), bool)
    hits[pairs.detections] = True
    return hits


def _covered(field: AnnotatedField, places: np.ndarray, radius: float) -> float:
    """Returns the share of the field's area within the radius of a place, on a grid of points."""
    width, height = (side * field.scale for side in (field.lattice.width, field.lattice.height))
    across = max(1, round((_GRID * width / height) ** 0.5))
    down = max(1, round(_GRID / across))
    x, y = (np.arange(across) + 0.5) * width / across, (np.arange(down) + 0.5) * height / down
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    nearest, _ = KDTree(places).query(grid, distance_upper_bound=np.nextafter(radius, np.inf))
    return float(np.isfinite(nearest).mean())


def _places(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, y], axis=1)
