"""Which pairs of pictures are worth a close look, in nearly linear time.

The strongest keypoints of all pictures lie in an approximate index (inverted lists of faiss). Each
picture asks for the nearest neighbours of its own, as they are and mirrored, and pairs are ranked
by the neighbours that agree on one turn and one zoom. Whole pictures without structure are found by
their perceptual hash over the eight views instead.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
import threadpoolctl

from tfds_pap import keypoints

#: Dimensions that hold what tells keypoints apart, and vectors below which all are compared.
_DIMENSIONS = 64
_EXHAUSTIVE_BELOW = 8_192
#: Inverted lists a square root of the vectors, training vectors a list, lists that are searched.
_LISTS = 2
_TRAINING = 39
_PROBED = 8
#: The same of hashes. All pairs of 50,000 pictures in eight views take 23 processor seconds.
_EXHAUSTIVE_HASHES_BELOW = 65_536
_HASH_LISTS = 4
_HASHES_PROBED = 64
#: Descriptors of which the projection is made.
_SAMPLE = 20_000
#: Pictures that ask at one time, and blocks at most, before which these grow.
_BLOCK = 500
_MOST_BLOCKS = 5_000

#: Turns are counted in overlapping bins of this width, zooms likewise (factors).
_TURN_DEGREES = 40
_ZOOM = 1.6
#: No pair is looked at whose keypoints differ more in size.
_LARGEST_ZOOM = 2.2


@dataclasses.dataclass(frozen=True)
class Effort:
    """How hard is looked.

    Attributes:
        detected: Keypoints of each picture that are kept for the comparison of two.
        indexed: Keypoints of each picture that lie in the index.
        neighbours: Of each keypoint.
        kept: Candidates of each picture and side.
        least_votes: Agreeing neighbours that a candidate must have.
        closure: Whether pictures that match the same one are compared with one another.
    """

    detected: int
    indexed: int
    neighbours: int
    kept: int
    least_votes: int
    closure: bool


@dataclasses.dataclass(frozen=True)
class Described:
    """Keypoints of some pictures, without what they look like; arrays of one shape.

    Attributes:
        owner: Whose each is, int64; -1 where there is none.
        angle: Radians.
        size: Pixels.
    """

    owner: np.ndarray
    angle: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True)
class Projection:
    """Onto the principal directions of descriptors and their mirror images, length 1.

    Attributes:
        centre: float32 `[128]`.
        directions: float32 `[128, 64]`.
    """

    centre: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, sample: np.ndarray) -> "Projection":
        """Of descriptors, those of `sample_of` where there are more."""
        values = keypoints.unit(sample)
        values = np.concatenate([values, keypoints.mirrored(values)])
        _, directions = np.linalg.eigh(np.cov(values.T))
        return cls(
            values.mean(axis=0), np.ascontiguousarray(directions[:, -_DIMENSIONS:], np.float32)
        )

    def __call__(self, descriptors: np.ndarray, mirror: bool = False) -> np.ndarray:
        """Returns float32 `[n, 64]`, of the mirrored pictures where that is asked for."""
        rows = keypoints.mirrored(descriptors) if mirror else descriptors
        values = (keypoints.unit(rows) - self.centre) @ self.directions
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def sample_of(count: int) -> slice:
    """Returns which of so many descriptors a projection is made of."""
    return slice(None, None, max(1, count // _SAMPLE))


def few(count: int) -> bool:
    """Returns whether so many keypoints of a side are all compared, without lists."""
    return count < _EXHAUSTIVE_BELOW


def training_of(count: int) -> slice:
    """Returns which of so many vectors lists are trained on."""
    return slice(None, None, max(1, count // (int(_LISTS * count**0.5) * _TRAINING)))


def trained(vectors: np.ndarray, count: int) -> faiss.IndexIVF:
    """Makes empty inverted lists: what is alike lies in one, as 8 bits a dimension.

    Args:
        vectors: float32 `[n, 64]`, those of `training_of`.
        count: Vectors that will lie in the lists.
    """
    lists = int(_LISTS * count**0.5)
    index: Any = faiss.index_factory(
        vectors.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT
    )
    index.train(np.ascontiguousarray(vectors))
    # Each list is searched on its own, see `met`.
    index.nprobe = 1
    return index


def lists_of(index: faiss.IndexIVF, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lists in which vectors look for their like, the first of which holds them.

    Returns:
        int64 and float32 `[n, p]`: list (-1 for none) and its nearness.
    """
    nearness, lists = index.quantizer.search(vectors, min(_PROBED, index.nlist))
    return lists, nearness


def add(index: faiss.IndexIVF, vectors: np.ndarray, lists: np.ndarray, ids: np.ndarray) -> None:
    """Puts vectors into their lists; within a list ids must be ascending."""
    vectors, lists, ids = (np.ascontiguousarray(a) for a in (vectors, lists, ids))
    index.add_core(len(ids), *(faiss.swig_ptr(a) for a in (vectors, ids, lists)))


def met(
    index: Any, vectors: np.ndarray, lists: np.ndarray, nearness: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest of one list each; whatever lies in other lists makes no difference.

    Args:
        index: That holds the lists.
        vectors: float32 `[n, 64]`.
        lists: int64 `[n]`, from `lists_of`.
        nearness: float32 `[n]`, from `lists_of`.
        count: Neighbours of each.

    Returns:
        Scores, float32, and ids, int64 (-1 where there are fewer), `[n, count]`.
    """
    return index.search_preassigned(vectors, count, lists[:, None], nearness[:, None])


def best_of(scores: np.ndarray, count: int, *values: np.ndarray) -> list[np.ndarray]:
    """The nearest of what several lists gave, the lower id first where two are as near.

    Args:
        scores: `[n, m]`.
        count: How many of each row are kept.
        *values: Arrays `[n, m]`, ids first; -1 for none.

    Returns:
        Each of the values, `[n, count]`, -1 (as an id) where there are fewer.
    """
    scores = np.where(values[0] >= 0, scores, -np.inf)
    count = min(count, scores.shape[1])
    least = np.partition(scores, -count, axis=1)[:, -count]
    row, column = np.nonzero((scores >= least[:, None]) & (values[0] >= 0))
    order = np.lexsort((values[0][row, column], -scores[row, column], row))
    row, column = row[order], column[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    row, column, place = (a[place < count] for a in (row, column, place))
    best = []
    for value in values:
        kept = np.full((len(scores), count), -1, value.dtype)
        kept[row, place] = value[row, column]
        best.append(kept)
    return best


def neighbours_of(effort: Effort) -> int:
    """Returns how many neighbours a keypoint asks for; its picture's own are the nearest."""
    return effort.neighbours + 2


def blocks(count: int) -> int:
    """Returns how many pictures, one after the other, ask at one time where there are so many.

    What is computed of a block must not depend on where that happens, to the last digit.
    """
    return max(_BLOCK, count // _MOST_BLOCKS)


class _Side:
    """The keypoints of the pictures of one side, all compared or in lists."""

    def __init__(
        self,
        project: Projection,
        points: keypoints.Keypoints,
        parts: list[np.ndarray],
        effort: Effort,
    ) -> None:
        rows = [points.strongest(part, effort.indexed)[0] for part in parts]
        self._rows = np.concatenate([np.empty(0, np.int64), *rows])
        self._count = neighbours_of(effort)
        if few(len(self._rows)):
            self._index: Any = faiss.IndexFlatIP(_DIMENSIONS)
            for part in rows:
                self._index.add(project(points.descriptors[part]))
            return
        sample = self._rows[training_of(len(self._rows))]
        self._index = trained(project(points.descriptors[sample]), len(self._rows))
        for part in rows:
            vectors = project(points.descriptors[part])
            add(self._index, vectors, lists_of(self._index, vectors)[0][:, 0], part)

    def __len__(self) -> int:
        return len(self._rows)

    def near(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the keypoints that are nearest, int64 `[n, k]`, -1 where there are fewer."""
        if few(len(self._rows)):
            near = self._index.search(vectors, self._count)[1]
            return np.where(near >= 0, self._rows[near], -1)
        lists, nearness = lists_of(self._index, vectors)
        probed = lists.shape[1]
        scores, ids = met(
            self._index,
            np.repeat(vectors, probed, axis=0),
            lists.ravel(),
            nearness.ravel(),
            self._count,
        )
        scores, ids = (a.reshape(len(vectors), -1) for a in (scores, ids))
        return best_of(scores, self._count, ids)[0]


def by_keypoints(
    points: keypoints.Keypoints,
    by_side: list[list[np.ndarray]],
    effort: Effort,
    progress: Callable[[Iterable], Iterable] = iter,
) -> set[tuple[int, int, bool]]:
    """Finds pairs whose keypoints are like one another.

    Args:
        points: Of all pictures.
        by_side: Positions of the pictures of each side, ascending, in the parts that lie in each
            block (`blocks`); neighbours are looked for on each side on its own, so that copies on
            one cannot hide those on another.
        effort: How hard to look.
        progress: Wraps what is iterated over, one item a block of pictures and side.

    Returns:
        (first, second, whether one is mirrored); first < second.
    """
    if len(points.descriptors) < 2:
        return set()
    sample = points.descriptors[sample_of(len(points.descriptors))]
    owner = np.repeat(np.arange(len(points.start) - 1), np.diff(points.start))
    found: set[tuple[int, int, bool]] = set()
    # A product of matrices may have other last digits with other threads.
    with threadpoolctl.threadpool_limits(1, "blas"):
        project = Projection.of(sample)
        sides = [_Side(project, points, parts, effort) for parts in by_side]
        asking = [np.sort(np.concatenate(parts)) for parts in zip(*by_side, strict=True)]
        for block, side in progress([(b, side) for side in sides if len(side) for b in asking]):
            rows, asker = points.strongest(block, effort.indexed)
            if not len(rows):
                continue
            for mirror in (False, True):
                near = side.near(project(points.descriptors[rows], mirror))
                ours = Described(asker, points.angle[rows], points.size[rows])
                theirs = Described(
                    np.where(near >= 0, owner[near], -1), points.angle[near], points.size[near]
                )
                found.update((a, b, mirror) for a, b in agreeing(ours, theirs, mirror, effort))
    return found


def agreeing(
    ours: Described, theirs: Described, mirror: bool, effort: Effort
) -> list[tuple[int, int]]:
    """Counts the neighbours that agree on a turn and a zoom; keeps the best pairs of each asker.

    Args:
        ours: Keypoints that ask, `[n]`.
        theirs: The neighbours of each on one side, `[n, k]`.
        mirror: Whether ours are those of mirrored pictures.
        effort: How hard to look.

    Returns:
        Pairs of pictures, the lower first.
    """
    left, column = np.nonzero((theirs.owner >= 0) & (theirs.owner != ours.owner[:, None]))
    right = left, column
    zoom = np.log(ours.size[left] / theirs.size[right])
    near = np.abs(zoom) <= np.log(_LARGEST_ZOOM)
    left, right, zoom = left[near], (left[near], column[near]), zoom[near]
    if not len(left):
        return []
    asker, other = ours.owner[left], theirs.owner[right]
    # A mirrored picture turns the other way round.
    turn = np.rad2deg(ours.angle[left] + theirs.angle[right] * (1 if mirror else -1)) % 360
    pairs, pair = np.unique(asker.astype(np.int64) << 32 | other, return_inverse=True)
    asking, left = np.unique(left, return_inverse=True)
    votes = np.zeros(len(pairs), np.int64)
    turns, width, bins = 360 // _TURN_DEGREES, np.log(_ZOOM), 8 * 360 // _TURN_DEGREES
    for turn_offset, zoom_offset in itertools.product((0.0, 0.5), repeat=2):
        place = np.floor(turn / _TURN_DEGREES + turn_offset).astype(np.int64) % turns
        place = place * 8 + np.floor(zoom / width + zoom_offset).astype(np.int64) + 4
        # Of the neighbours of one keypoint in one picture one counts.
        distinct = np.unique((pair * bins + place) * len(asking) + left) // len(asking)
        cells, counts = np.unique(distinct, return_counts=True)
        np.maximum.at(votes, cells // bins, counts)
    strong = np.flatnonzero(votes >= effort.least_votes)
    order = strong[np.lexsort((pairs[strong], -votes[strong], pairs[strong] >> 32))]
    first = pairs[order] >> 32
    order = order[np.arange(len(first)) - np.searchsorted(first, first) < effort.kept]
    keys = ((key >> 32, key & 0xFFFFFFFF) for key in pairs[order].tolist())
    return [(min(pair), max(pair)) for pair in keys]


def nearest(unit: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """Finds the nearest of some vectors for each of all, by cosine.

    Args:
        unit: float32 `[n, d]`, length 1.
        members: Positions among which is looked.
        count: Neighbours of each.

    Returns:
        int64 `[n, count]`, places in `members`; -1 where there are fewer.
    """
    vectors = np.ascontiguousarray(unit[members])
    if few(len(vectors)):
        index: Any = faiss.IndexFlatIP(vectors.shape[1])
    else:
        index = trained(vectors[training_of(len(vectors))], len(vectors))
        index.nprobe = _PROBED
    index.add(vectors)
    return index.search(np.ascontiguousarray(unit), count)[1]


def nearest_hashes(
    index: faiss.IndexBinary, hashes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds for each picture, in each of its views, the nearest of some others.

    Args:
        index: Of the others, from `hash_index`.
        hashes: uint64 `[n, views]`; view 0 is the picture itself.
        count: Neighbours of each view.

    Returns:
        Places in the index (-1 where there are fewer), bits that differ, and the view of the
        picture that is near the other, each `[n, views * (count + 1)]`.
    """
    codes = np.ascontiguousarray(hashes).view(np.uint8).reshape(*hashes.shape, 8)
    count = min(count + 1, index.ntotal)
    near, bits, views = [], [], []
    for view in range(hashes.shape[1]):
        differing, nearest_of_view = index.search(np.ascontiguousarray(codes[:, view]), count)
        near.append(nearest_of_view)
        bits.append(differing)
        views.append(np.full(nearest_of_view.shape, view))
    return np.concatenate(near, 1), np.concatenate(bits, 1), np.concatenate(views, 1)


def hash_index(hashes: np.ndarray) -> faiss.IndexBinary:
    """Holds the hashes of pictures, uint64 `[n]`, all compared or in lists."""
    codes = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), 8)
    count = len(codes)
    if count < _EXHAUSTIVE_HASHES_BELOW:
        index: Any = faiss.IndexBinaryFlat(64)
    else:
        lists = int(_HASH_LISTS * count**0.5)
        index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(64), 64, lists)
        index.nprobe = _HASHES_PROBED
        index.train(np.ascontiguousarray(codes[:: max(1, count // (lists * _TRAINING))]))
    index.add(codes)
    return index
