"""Random changes to a batch of training images, each a function of the images and a seed alone."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfds_pap.views import VIEWS, turned

# P3, in torchvision's terms: GaussianBlur((5, 9), sigma=(0.1, 5)), RandomRotation((30, 70)).
_BLUR_WIDTH, _BLUR_HEIGHT = 5, 9
_BLUR_SIGMA = (0.1, 5.0)
_ROTATION_DEGREES = (30.0, 70.0)


def random_flips(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turns each image into one of its eight flips and quarter-turns; a smear has no "up".

    Args:
        images: `[b, size, size, 3]`, size known when the graph is built.
        seed: int32 `[2]`; the same seed gives the same choice.
    """
    return view(images, draw_views(tf.shape(images)[0], seed))


def random_stored_view(features: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Picks, of the stored features of all eight views, those that `random_flips` would show.

    Args:
        features: `[b, 8, d]`, views in the order of `view`.
        seed: int32 `[2]`; with the seed of `random_flips` it makes the same choice.

    Returns:
        `[b, d]`.
    """
    return tf.gather(features, draw_views(tf.shape(features)[0], seed), batch_dims=1)


def view(images: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
    """Returns one of the eight views of each image; view 0 is the image itself.

    Args:
        images: `[b, size, size, 3]`, size known when the graph is built.
        choice: int32 `[b]`, 0..7, see `views.turned`.
    """
    count, size = tf.shape(images)[0], images.shape[1]
    # One gather of pixels costs a tenth of flipping and transposing whole batches.
    pixels = tf.gather(tf.constant(_eight_views(size)), choice)
    flat = tf.gather(tf.reshape(images, [count, size * size, 3]), pixels, batch_dims=1)
    return tf.reshape(flat, tf.shape(images))


def draw_views(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the views that `random_flips` and `random_stored_view` choose, int32 `[count]`.

    Args:
        count: Of images.
        seed: int32 `[2]`.
    """
    return tf.random.stateless_uniform([count], seed, 0, VIEWS, tf.int32)


@functools.lru_cache
def _eight_views(size: int) -> np.ndarray:
    """For each view the flat index of the pixel that comes to each place, int32 `[8, size**2]`."""
    places = np.arange(size * size, dtype=np.int32).reshape(size, size)
    return np.stack([turned(places, choice).ravel() for choice in range(VIEWS)])


def random_flips_blur_rotation(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The augmentation of P3: both flips at random, blur, and a turn by 30 to 70 degrees.

    Every image is blurred and turned, none is shown as it is, and the corners become black: so the
    authors trained.

    Args:
        images: uint8 `[b, size, size, 3]`.
        seed: int32 `[2]`.
    """
    count = tf.shape(images)[0]
    seeds = tf.unstack(tf.random.split(seed, 3))
    flipped = view(images, tf.random.stateless_uniform([count], seeds[0], 0, 4, tf.int32))
    sigma = tf.random.stateless_uniform([count], seeds[1], *_BLUR_SIGMA)
    blurred = blur(tf.cast(flipped, tf.float32), sigma, _BLUR_HEIGHT, _BLUR_WIDTH)
    degrees = tf.random.stateless_uniform([count], seeds[2], *_ROTATION_DEGREES)
    return tf.saturate_cast(tf.round(rotate(blurred, degrees)), images.dtype)


def blur(images: tf.Tensor, sigma: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Blurs each image with its own Gaussian; borders are mirrored without the edge pixel.

    Args:
        images: float32 `[b, h, w, 3]`.
        sigma: float32 `[b]`, pixels.
        height: Rows of the kernel, odd.
        width: Columns of the kernel, odd.
    """
    vertical, horizontal = height // 2, width // 2
    padding = [[0, 0], [vertical, vertical], [horizontal, horizontal], [0, 0]]
    padded = tf.pad(images, padding, "REFLECT")
    # All images become the channels of one, so that each can have its own kernel.
    shape = tf.shape(padded)
    stacked = tf.reshape(tf.transpose(padded, [1, 2, 0, 3]), [1, shape[1], shape[2], -1])
    for size, axis in ((height, 0), (width, 1)):
        kernel = tf.repeat(tf.transpose(_gaussian(sigma, size)), 3, axis=1)
        kernel = tf.expand_dims(tf.expand_dims(kernel, 1 - axis), -1)
        stacked = tf.nn.depthwise_conv2d(stacked, kernel, [1, 1, 1, 1], "VALID")
    blurred = tf.reshape(stacked, tf.concat([tf.shape(images)[1:3], shape[:1], [3]], 0))
    return tf.ensure_shape(tf.transpose(blurred, [2, 0, 1, 3]), images.shape)


def _gaussian(sigma: tf.Tensor, size: int) -> tf.Tensor:
    """Kernels `[b, size]` that add up to 1."""
    places = tf.range(size, dtype=tf.float32) - (size - 1) / 2
    return tf.nn.softmax(-0.5 * (places[None] / sigma[:, None]) ** 2)


def rotate(images: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns each image about its centre, counter-clockwise; nearest pixel, black outside.

    Args:
        images: float32 `[b, size, size, 3]`.
        degrees: float32 `[b]`.
    """
    angle = degrees * np.pi / 180
    cosine, sine = tf.cos(angle), tf.sin(angle)
    centre = (images.shape[1] - 1) / 2
    zero = tf.zeros_like(angle)
    # From places of the result (x, y downwards) to places of the image.
    rows = [
        cosine,
        -sine,
        centre * (1 - cosine + sine),
        sine,
        cosine,
        centre * (1 - sine - cosine),
        zero,
        zero,
    ]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


#: Names of `--augment` and of recipes; "stored_views" is "flips" where features are stored.
AUGMENTATIONS: Mapping[str, Callable | None] = {
    "none": None,
    "flips": random_flips,
    "flips_blur_rotation": random_flips_blur_rotation,
    "stored_views": random_stored_view,
}
