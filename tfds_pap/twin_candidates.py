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
#: Pictures that ask at one time.
_BLOCK = 1_000

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


def by_keypoints(
    points: keypoints.Keypoints,
    by_side: list[np.ndarray],
    effort: Effort,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[tuple[int, int, bool], int]:
    """Finds pairs whose keypoints are like one another.

    Args:
        points: Of all pictures.
        by_side: Positions of the pictures of each side, ascending; neighbours are looked for on
            each side on its own, so that copies on one cannot hide those on another.
        effort: How hard to look.
        progress: Wraps what is iterated over, one item a block of pictures and side.

    Returns:
        (first, second, whether one is mirrored) -> votes; first < second.
    """
    if len(points.descriptors) < 2:
        return {}
    project = _projection(points.descriptors)
    votes: dict[tuple[int, int, bool], int] = {}
    pictures = np.arange(len(points.start) - 1)
    blocks = [pictures[n : n + _BLOCK] for n in range(0, len(pictures), _BLOCK)]
    indexed = [
        (_index(project(points.descriptors[rows])), rows, owner)
        for rows, owner in (points.strongest(side, effort.indexed) for side in by_side)
        if len(rows)
    ]
    for block, (index, rows, owner) in progress(
        [(block, one) for one in indexed for block in blocks]
    ):
        asking, asker = points.strongest(block, effort.indexed)
        for mirror in (False, True):
            described = points.descriptors[asking]
            if mirror:
                described = keypoints.mirrored(described)
            if not len(described):
                continue
            # Its own keypoints are the nearest ones of a picture that is on this side.
            _, near = index.search(project(described), effort.neighbours + 2)
            left = np.repeat(np.arange(len(asking)), near.shape[1])
            near = near.ravel()
            valid = (near >= 0) & (owner[near] != asker[left])
            left, near = left[valid], near[valid]
            _vote(
                votes,
                points,
                asking[left],
                rows[near],
                asker[left],
                owner[near],
                mirror,
                effort,
            )
    return votes


def _projection(descriptors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Onto the principal directions of a sample and its mirror image, length 1."""
    sample = keypoints.unit(descriptors[:: max(1, len(descriptors) // 20_000)])
    sample = np.concatenate([sample, keypoints.mirrored(sample)])
    centre = sample.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(sample.T))
    directions = np.ascontiguousarray(directions[:, -_DIMENSIONS:], np.float32)

    def project(rows: np.ndarray) -> np.ndarray:
        values = (keypoints.unit(rows) - centre) @ directions
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)

    return project


def _index(vectors: np.ndarray) -> faiss.Index:
    count, dimensions = vectors.shape
    if count < _EXHAUSTIVE_BELOW:
        index: Any = faiss.IndexFlatIP(dimensions)
    else:
        lists = int(_LISTS * count**0.5)
        index = faiss.index_factory(dimensions, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _PROBED
        step = max(1, count // (lists * _TRAINING))
        index.train(np.ascontiguousarray(vectors[::step]))
    index.add(vectors)
    return index


def _vote(
    best: dict[tuple[int, int, bool], int],
    points: keypoints.Keypoints,
    left: np.ndarray,
    right: np.ndarray,
    asker: np.ndarray,
    other: np.ndarray,
    mirror: bool,
    effort: Effort,
) -> None:
    """Counts the neighbours that agree on a turn and a zoom; keeps the best pairs of each asker."""
    zoom = np.log(points.size[left] / points.size[right])
    near = np.abs(zoom) <= np.log(_LARGEST_ZOOM)
    left, right, asker, other, zoom = (v[near] for v in (left, right, asker, other, zoom))
    if not len(left):
        return
    # A mirrored picture turns the other way round.
    turn = np.rad2deg(points.angle[left] + points.angle[right] * (1 if mirror else -1)) % 360
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
    for key, count in zip(pairs[order].tolist(), votes[order].tolist(), strict=True):
        a, b = key >> 32, key & 0xFFFFFFFF
        name = (min(a, b), max(a, b), mirror)
        best[name] = max(best.get(name, 0), count)


def nearest(unit: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """Finds the nearest of some vectors for each of all, by cosine.

    Args:
        unit: float32 `[n, d]`, length 1.
        members: Positions among which is looked.
        count: Neighbours of each.

    Returns:
        int64 `[n, count]`, places in `members`; -1 where there are fewer.
    """
    index = _index(np.ascontiguousarray(unit[members]))
    return index.search(np.ascontiguousarray(unit), count)[1]


def nearest_hashes(
    hashes: np.ndarray, members: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds for each picture, in each of its views, the nearest of some others.

    Args:
        hashes: uint64 `[n, views]`; view 0 is the picture itself.
        members: Positions among which is looked.
        count: Neighbours of each view.

    Returns:
        Places in `members` (-1 where there are fewer), bits that differ, and the view of the
        picture that is near the other, each `[n, views * (count + 1)]`.
    """
    codes = np.ascontiguousarray(hashes).view(np.uint8).reshape(*hashes.shape, 8)
    index = _binary_index(np.ascontiguousarray(codes[members, 0]))
    count = min(count + 1, len(members))
    near, bits, views = [], [], []
    for view in range(hashes.shape[1]):
        differing, nearest_of_view = index.search(np.ascontiguousarray(codes[:, view]), count)
        near.append(nearest_of_view)
        bits.append(differing)
        views.append(np.full(nearest_of_view.shape, view))
    return np.concatenate(near, 1), np.concatenate(bits, 1), np.concatenate(views, 1)


def _binary_index(codes: np.ndarray) -> faiss.IndexBinary:
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
