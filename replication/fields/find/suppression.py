"""One detection a cell: of ROIs that lie close together, the one with the highest score stays.

This is greedy non-maximum suppression by distance: the ROI with the highest score is kept, all
nearer than a radius to it are dropped, and so on. On a lattice it need not go one by one: whatever
beats every undecided neighbour would be kept at its turn in any case, so all such ROIs are kept at
once, their neighbours dropped, and so on until nothing is undecided. The result is the same.
"""

import numpy as np
import tensorflow as tf

#: Stands for "outside the disk" when it is added to a rank.
_OUTSIDE = -(2**30)


def keep(scores: np.ndarray, threshold: float, radius: float, stride: int) -> np.ndarray:
    """Chooses the ROIs that become cells.

    Whatever is kept at a threshold and scores above a higher one is just what is kept at that one.

    Args:
        scores: float32 `[rows, columns]`, probability of a cell.
        threshold: Lower scores are no detections.
        radius: Of two kept ROIs, none lies nearer than this to the other, pixels.
        stride: Pixels from one ROI to the next.

    Returns:
        int64 `[n, 2]`, row and column, in reading order.

    Example:
        >>> keep(np.array([[0.2, 0.9, 0.8, 0.7]]), 0.5, radius=30, stride=25).tolist()
        [[0, 1], [0, 3]]
    """
    if not scores.size:
        return np.zeros((0, 2), np.int64)
    disk = tf.constant(footprint(radius, stride))
    is_kept = kept(tf.constant(scores, tf.float32), tf.constant(threshold, tf.float32), disk)
    return tf.where(is_kept).numpy()


def footprint(radius: float, stride: int) -> np.ndarray:
    """Returns what is added to the neighbours' ranks: 0 nearer than the radius, else very little.

    Args:
        radius: Pixels.
        stride: Pixels.

    Returns:
        int32 `[k, k, 1]`, k odd.
    """
    reach = int(np.ceil(radius / stride)) - 1 if radius > 0 else 0
    steps = np.arange(-reach, reach + 1) * stride
    near = np.hypot(*np.meshgrid(steps, steps)) < max(radius, np.finfo(float).tiny)
    return np.where(near, 0, _OUTSIDE).astype(np.int32)[..., None]


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([], tf.float32),
        tf.TensorSpec([None, None, 1], tf.int32),
    ]
)
def kept(scores: tf.Tensor, threshold: tf.Tensor, disk: tf.Tensor) -> tf.Tensor:
    """The same in TensorFlow's operations.

    Args:
        scores: float32 `[rows, columns]`.
        threshold: float32 scalar.
        disk: From `footprint`.

    Returns:
        Whether each ROI is kept, bool `[rows, columns]`.
    """
    places = tf.where(scores >= threshold)
    count = tf.shape(places)[0]
    # Ties go to the first in reading order, as the sort is stable.
    order = tf.argsort(tf.gather_nd(scores, places), direction="DESCENDING", stable=True)
    ranks = tf.scatter_nd(
        tf.gather(places, order), tf.range(count, 0, -1), tf.shape(scores, tf.int64)
    )

    def best_nearby(values: tf.Tensor) -> tf.Tensor:
        highest = tf.nn.dilation2d(values[None, ..., None], disk, [1] * 4, "SAME", "NHWC", [1] * 4)
        return highest[0, ..., 0]

    def step(undecided: tf.Tensor, is_kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        winners = (undecided > 0) & (undecided == best_nearby(undecided))
        beaten = best_nearby(tf.cast(winners, tf.int32)) > 0
        return tf.where(beaten, 0, undecided), is_kept | winners

    _, is_kept = tf.while_loop(
        lambda undecided, is_kept: tf.reduce_any(undecided > 0),
        step,
        [ranks, tf.zeros(tf.shape(scores), tf.bool)],
    )
    return is_kept
