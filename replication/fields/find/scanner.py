"""Reads one field in two stages: where are cells, and which?

A field is read in blocks, so that one of 100,000 x 100,000 px needs no more memory than a block for
each worker and one number for each ROI. Suppression wants the scores of all ROIs, and so stage 2
starts when stage 1 is done; what is found does not depend on the blocks.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import numpy as np

from replication.fields.find import suppression, tissue
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.find.stages import BATCH, Stages
from replication.fields.read.field import Field

#: Side of a block in pixels, at least one ROI.
BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class FieldScan:
    """What was found in one field.

    Attributes:
        lattice: Where the ROIs stand.
        scores: Probability of a cell in each ROI, float32 `[rows, columns]`.
        detections: ROIs at the threshold or above.
        cells: The kept ones, named, the most suspicious first.
        seconds: Spent in "read" (of stage 1), "stage1", "suppression" and "stage2" (its reading
            included; "tissue", where glass is skipped); those of several workers are added up.
        skipped: ROIs on glass that were not read; their scores are 0.
    """

    lattice: Lattice
    scores: np.ndarray
    detections: int
    cells: Cells
    seconds: dict[str, float]
    skipped: int = 0


def scan(
    field: Field,
    stages: Stages,
    *,
    threshold: float,
    radius: float,
    pool: futures.Executor,
    advance: Callable[[float], None] = lambda share: None,
    block: int = BLOCK,
    skip_glass: bool = False,
) -> FieldScan:
    """Reads a field.

    Args:
        field: The field.
        stages: Both networks.
        threshold: Score of a detection at least.
        radius: Of suppression, pixels as read.
        pool: Its threads read blocks and run the networks.
        advance: Called with the share of the field that was done since the last call; the shares of
            a field add up to 1.
        block: Side of a block, pixels as read.
        skip_glass: Whether ROIs without stain (`tissue.rois`) stay unread.

    Raises:
        FieldError: If the field is damaged.
    """
    decision = stages.stage2.decision
    stage1, seconds = stages.stage1, collections.defaultdict[str, float](float)
    lattice = Lattice(field.width, field.height, stage1.roi, stage1.stride)
    wanted = None
    if skip_glass:
        with _timed(seconds, "tissue"):
            wanted = tissue.rois(field, lattice)
    places = list(blocks(lattice, block, wanted))
    scores = score_map(field, stages, places, pool=pool, advance=advance, seconds=seconds)
    with _timed(seconds, "suppression"):
        kept = suppression.keep(scores, threshold, radius, stage1.stride)
    tops, lefts = kept.T * stage1.stride

    def name(part: slice) -> np.ndarray:
        with _timed(seconds, "stage2"):
            probabilities = stages.stage2.probabilities(field, tops[part], lefts[part])
        advance(0.5 * len(probabilities) / len(kept))
        return probabilities

    parts = [slice(n, n + BATCH) for n in range(0, len(kept), BATCH)]
    named = [np.zeros((0, len(decision.labels))), *pool.map(name, parts)]
    if not parts:
        advance(0.5)
    found = collect(field, stages, scores, threshold, kept, np.concatenate(named), dict(seconds))
    return dataclasses.replace(found, skipped=lattice.rois - sum(map(rois, places)))


def collect(
    field: Field,
    stages: Stages,
    scores: np.ndarray,
    threshold: float,
    kept: np.ndarray,
    probabilities: np.ndarray,
    seconds: dict[str, float],
) -> FieldScan:
    """Puts together what was found in one field.

    Args:
        field: The field.
        stages: Both networks.
        scores: From `score_map`.
        threshold: Score of a detection at least.
        kept: From `suppression.keep`.
        probabilities: Of stage 2 for each kept ROI, `[n, k]`.
        seconds: See `FieldScan`.
    """
    decision, stage1 = stages.stage2.decision, stages.stage1
    lattice = Lattice(field.width, field.height, stage1.roi, stage1.stride)
    x, y = lattice.centres(*kept.T)
    cells = Cells(
        x=x * field.scale,
        y=y * field.scale,
        scores=scores[tuple(kept.T)].astype(np.float64),
        probabilities=probabilities,
        hsil_plus=decision.hsil_plus(probabilities),
        abstain=decision.abstains(probabilities),
        classes=decision.classes,
    )
    detections = int((scores >= threshold).sum())
    return FieldScan(lattice, scores, detections, cells.sorted(), seconds)


def score_map(
    field: Field,
    stages: Stages,
    places: Sequence[tuple[slice, slice]] | None = None,
    *,
    pool: futures.Executor,
    advance: Callable[[float], None] = lambda share: None,
    seconds: collections.defaultdict[str, float] | None = None,
) -> np.ndarray:
    """Runs stage 1 over a field; see `scan`.

    Args:
        field: The field.
        stages: The networks.
        places: From `blocks`; None takes all of them.
        pool: See `scan`.
        advance: See `scan`; half of the field is done here.
        seconds: See `FieldScan`; added to.

    Returns:
        float32 `[rows, columns]` of the `Lattice`; 0 outside the blocks.
    """
    stage1 = stages.stage1
    seconds = collections.defaultdict(float) if seconds is None else seconds
    lattice = Lattice(field.width, field.height, stage1.roi, stage1.stride)
    scores = np.zeros((lattice.rows, lattice.columns), np.float32)

    def score(rows: slice, columns: slice) -> None:
        with _timed(seconds, "read"):
            pixels = field.read(*covered(lattice, rows, columns))
        with _timed(seconds, "stage1"):
            scores[rows, columns] = stage1.scores(pixels)
        advance(0.5 * rois((rows, columns)) / total)

    places = list(blocks(lattice)) if places is None else places
    total = sum(map(rois, places))
    for _ in pool.map(lambda place: score(*place), places):
        pass
    if not places:
        advance(0.5)
    return scores


def blocks(
    lattice: Lattice, side: int = BLOCK, wanted: np.ndarray | None = None
) -> Iterator[tuple[slice, slice]]:
    """Cuts a lattice into rectangles of ROIs, row by row.

    Args:
        lattice: The lattice.
        side: Pixels that the ROIs of a rectangle cover at most; one ROI at least.
        wanted: bool `[rows, columns]`: rectangles shrink to the wanted ROIs in them, and those
            without any are left out; None wants all.
    """
    count = max(1, (side - lattice.roi) // lattice.stride + 1)
    for row in range(0, lattice.rows, count):
        for column in range(0, lattice.columns, count):
            place = (
                slice(row, min(row + count, lattice.rows)),
                slice(column, min(column + count, lattice.columns)),
            )
            if wanted is None:
                yield place
            elif wanted[place].any():
                down, across = (np.flatnonzero(wanted[place].any(axis=axis)) for axis in (1, 0))
                yield (
                    slice(row + int(down[0]), row + int(down[-1]) + 1),
                    slice(column + int(across[0]), column + int(across[-1]) + 1),
                )


def covered(lattice: Lattice, rows: slice, columns: slice) -> tuple[int, int, int, int]:
    """Returns what a rectangle of ROIs covers: left, top, width and height, pixels as read."""
    return (
        columns.start * lattice.stride,
        rows.start * lattice.stride,
        (columns.stop - columns.start - 1) * lattice.stride + lattice.roi,
        (rows.stop - rows.start - 1) * lattice.stride + lattice.roi,
    )


def rois(place: tuple[slice, slice]) -> int:
    """How many ROIs a rectangle has."""
    return (place[0].stop - place[0].start) * (place[1].stop - place[1].start)


@contextlib.contextmanager
def _timed(seconds: collections.defaultdict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start
