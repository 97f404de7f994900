"""The affine map on which matched keypoints agree.

A keypoint has a place, a direction and a size, so that each match says alone how one picture lies
on the other. The maps with the most followers are fitted to them. A handful of right matches among
many wrong ones is enough, where samples of three matches each would miss it.
"""

import numpy as np

from tfds_pap import keypoints

#: Pixels by which a match may miss its place: while the map is one match's own, in each round of
#: fitting, and in the end.
_LOOSE = 9.0
_ROUNDS = (6.0, 4.0, 2.5)
#: Maps that are fitted, the most followed first.
_TRIED = 4
#: What people do to pictures: zooms in this range, the longer side stretched by this factor.
_ZOOMS = (0.5, 2.0)
_STRETCH = 1.7
#: Product of the variances of the places along two axes, pixels to the fourth: less is a line.
_LEAST_SPREAD = 25.0
#: Pixels between keypoints that count as two.
_APART = 2.0


def matches(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of descriptors that are one another's nearest.

    Args:
        ours: float32 `[m, 128]`, of length 1.
        theirs: float32 `[k, 128]`, of length 1.
    """
    likeness = ours @ theirs.T
    there, here = likeness.argmax(axis=1), likeness.argmax(axis=0)
    mutual = np.flatnonzero(here[there] == np.arange(len(there)))
    return mutual, there[mutual]


def fit(
    points: keypoints.Keypoints, ours: np.ndarray, theirs: np.ndarray, mirrored: bool, least: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fits affine maps to matched keypoints.

    Args:
        points: Of all pictures.
        ours: Rows of keypoints of one picture.
        theirs: Rows of those of another that they are matched with.
        mirrored: Whether the other is mirrored.
        least: Keypoints that must agree.

    Returns:
        Maps `[2, 3]` from places in the other picture to places in the one, and the places
        `[k, 2]` in the one that agree with each; the most followed first.
    """
    target, source = points.place[ours], points.place[theirs]
    linear = _own_maps(points, ours, theirs, mirrored)
    # Each map takes its own keypoint to its own place.
    moved = np.matmul(linear, source.T)
    own = np.arange(len(ours))
    miss = moved - moved[own, :, own][..., None] + target[..., None] - target.T
    near = miss[:, 0] ** 2 + miss[:, 1] ** 2 < _LOOSE**2
    followers = near.sum(axis=1)
    fits: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_TRIED):
        start = int(followers.argmax())
        if followers[start] < least:
            break
        # What follows this one says the same.
        followers[near[start]] = 0
        refined = _refine(source, target, near[start], least)
        if refined is not None and plausible(refined[0], mirrored):
            places = distinct(target[refined[1]])
            if len(places) >= least:
                fits.append((refined[0], places))
    return sorted(fits, key=lambda one: -len(one[1]))


def plausible(matrix: np.ndarray, mirrored: bool) -> bool:
    """Returns whether people do that to pictures.

    Args:
        matrix: `[2, 3]`.
        mirrored: Whether it should mirror.
    """
    values = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(
        (np.linalg.det(matrix[:, :2]) < 0) == mirrored
        and values[0] <= _ZOOMS[1]
        and values[1] >= _ZOOMS[0]
        and values[0] <= _STRETCH * values[1]
    )


def distinct(places: np.ndarray) -> np.ndarray:
    """Returns the places that lie apart: two orientations or sizes of one place are one."""
    x, y = places.T
    close = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2 < _APART**2
    return places[~np.tril(close, -1).any(axis=1)]


def _own_maps(
    points: keypoints.Keypoints, ours: np.ndarray, theirs: np.ndarray, mirrored: bool
) -> np.ndarray:
    """The turn and zoom that each match says, `[m, 2, 2]`."""
    zoom = points.size[ours] / points.size[theirs]
    # A mirrored picture turns the other way round.
    turn = points.angle[ours] - points.angle[theirs] * (-1 if mirrored else 1)
    turn = turn + (np.pi if mirrored else 0.0)
    cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
    flip = -1.0 if mirrored else 1.0
    return np.stack([np.stack([flip * cosine, -sine], 1), np.stack([flip * sine, cosine], 1)], 1)


def _refine(
    source: np.ndarray, target: np.ndarray, agreeing: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The affine map of least squares, and which matches follow it."""
    homogeneous = np.concatenate([source, np.ones((len(source), 1))], axis=1)
    for reach in _ROUNDS:
        if agreeing.sum() < least:
            return None
        near = homogeneous[agreeing]
        square = near.T @ near
        if np.linalg.det(square) < _LEAST_SPREAD * len(near) ** 3:
            return None
        solution = np.linalg.solve(square, near.T @ target[agreeing])
        miss = homogeneous @ solution - target
        matrix, agreeing = solution.T, miss[:, 0] ** 2 + miss[:, 1] ** 2 < reach**2
    return matrix, agreeing
