"""Keypoints of pictures: where there is structure, how it lies, and what it looks like.

SIFT (D. Lowe, Int. J. Comput. Vision 60 (2004) 91-110) keeps its description under turns and
zooms; the square root (R. Arandjelovic and A. Zisserman, CVPR 2012) tells descriptions better
apart. That of a mirrored picture follows from that of the picture itself, so that nothing is
described twice.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

import cv2
import numpy as np

from tfds_pap import content

_DIMENSIONS = 128
#: OpenCV's own is 0.04; pale ground has structure below it.
_CONTRAST = 0.003
#: For each keypoint that is kept this many are found.
_CHOSEN_FROM = 2


@dataclasses.dataclass(frozen=True)
class Keypoints:
    """Keypoints of many pictures, picture after picture; those of each that stand out most first.

    Attributes:
        start: int64 `[n + 1]`; those of picture i are the rows `start[i]:start[i + 1]`.
        place: float32 `[m, 2]`, x and y in pixels.
        angle: float32 `[m]`, radians.
        size: float32 `[m]`, pixels.
        descriptors: uint8 `[m, 128]`, of length 255 each.
    """

    start: np.ndarray
    place: np.ndarray
    angle: np.ndarray
    size: np.ndarray
    descriptors: np.ndarray

    def rows(self, picture: int) -> slice:
        """Returns which rows belong to a picture."""
        return slice(self.start[picture], self.start[picture + 1])

    def strongest(self, pictures: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of the strongest keypoints of some pictures, and whose each is.

        Args:
            pictures: int `[p]`, ascending.
            count: At most of each picture.
        """
        first, number = self.start[pictures], np.diff(self.start)[pictures].clip(max=count)
        owner = np.repeat(pictures, number)
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        return np.repeat(first, number) + within, owner


def detect(
    pictures: Iterable[np.ndarray],
    at_most: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Keypoints:
    """Finds the keypoints of pictures, on every core.

    Args:
        pictures: uint8 grey `[h, w]` each.
        at_most: Keypoints of each picture.
        progress: Wraps what is iterated over, one item a picture.
    """
    # A detector holds buffers: one a thread.
    detectors: dict[int, cv2.SIFT] = {}

    def one(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        thread = threading.get_ident()
        if thread not in detectors:
            detectors[thread] = cv2.SIFT.create(
                nfeatures=_CHOSEN_FROM * at_most, contrastThreshold=_CONTRAST
            )
        points, described = detectors[thread].detectAndCompute(picture, content.shown(picture))
        if not points:
            return np.empty((0, 4), np.float32), np.empty((0, _DIMENSIONS), np.uint8)
        table = np.array(
            [(*point.pt, np.deg2rad(point.angle), point.size) for point in points], np.float32
        )
        response = np.array([point.response for point in points])
        order = _standing_out(table[:, :2], response)[:at_most]
        return table[order], _root(described[order])

    tables = list(progress(in_order(one, pictures)))
    counts = [len(table) for table, _ in tables]
    geometry = np.concatenate([np.empty((0, 4), np.float32), *(table for table, _ in tables)])
    empty = np.empty((0, _DIMENSIONS), np.uint8)
    return Keypoints(
        start=np.cumsum([0, *counts]),
        place=np.ascontiguousarray(geometry[:, :2]),
        angle=geometry[:, 2],
        size=geometry[:, 3],
        descriptors=np.concatenate([empty, *(described for _, described in tables)]),
    )


def threads() -> int:
    """Returns how many threads this process may have: all cores, of a worker of a cluster fewer."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or os.cpu_count() or 1


def in_order(work: Callable, items: Iterable) -> Iterator:
    """Maps on every core, lazily and in order; OpenCV lets go of Python's lock.

    Args:
        work: Called with each item.
        items: Taken a few ahead of what is asked for.
    """
    ahead = 64
    with futures.ThreadPoolExecutor(threads()) as pool:
        waiting: list[futures.Future] = []
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def mirrored(descriptors: np.ndarray) -> np.ndarray:
    """Returns the descriptors of the mirrored pictures, in the given dtype.

    Args:
        descriptors: `[m, 128]`: 4 x 4 cells with 8 directions each.
    """
    cells = descriptors.reshape(-1, 4, 4, 8)[:, ::-1][..., -np.arange(8) % 8]
    return np.ascontiguousarray(cells.reshape(-1, _DIMENSIONS))


def unit(descriptors: np.ndarray) -> np.ndarray:
    """Returns descriptors as float32 of length 1."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _standing_out(place: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The order of keypoints by the distance to the nearest clearly stronger one, farthest first.

    Adaptive suppression (M. Brown, R. Szeliski and S. Winder, CVPR 2005): the strongest alone lie
    in one cell, and are gone where a twin is cut otherwise.
    """
    x, y = place.T
    gaps = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    np.putmask(gaps, response[:, None] >= 0.9 * response, np.inf)
    return np.lexsort((-response, -gaps.min(axis=1)))


def _root(described: np.ndarray) -> np.ndarray:
    sums = np.maximum(described.sum(axis=1, keepdims=True), 1e-12)
    return np.rint(np.sqrt(described / sums) * 255).astype(np.uint8)
