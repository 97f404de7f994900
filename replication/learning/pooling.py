"""Max pooling whose gradient costs little on a CPU; the trained model itself stays plain Keras.

TensorFlow's `MaxPoolGrad` is the largest single operation of a stage-2 step on a CPU: it looks for
each maximum again, one window after another. Comparing whole rows and columns at once, compiled
into one loop by XLA, gives the same bits in an eighth of the time (`benchmarks/training_step.py`).
"""

import functools
from typing import Any

import keras

#: Below this side in pixels the gradient costs less than compiling it for each shape of a batch.
_SMALLEST_SIDE = 50


def for_training(model: keras.Model) -> keras.Model:
    """Returns the model to train on a CPU: the same layers and weights, another gradient.

    Only max pooling of 2 x 2 pixels is replaced, where its input is large. Layers are shared, so
    what is trained is `model`, which can be saved and loaded without this package.

    Args:
        model: A functional model, not compiled.

    Returns:
        A model of the same input and output; `model` itself where nothing is replaced.
    """
    if not any(_is_replaced(layer) for layer in model.layers):
        return model
    return keras.models.clone_model(
        model,
        clone_function=lambda layer: (
            _MaxPooling2D.from_config(layer.get_config()) if _is_replaced(layer) else layer
        ),
    )


def _is_replaced(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.MaxPooling2D
        and tuple(layer.pool_size) == tuple(layer.strides) == (2, 2)
        and layer.padding == "valid"
        and layer.data_format == "channels_last"
        and min(side or 0 for side in layer.input.shape[1:3]) >= _SMALLEST_SIDE
    )


class _MaxPooling2D(keras.layers.MaxPooling2D):
    """Max pooling of 2 x 2 pixels on the TensorFlow backend."""

    def call(self, inputs: Any) -> Any:
        """Returns the maximum of each window, `[b, h // 2, w // 2, c]`."""
        return _pool()(inputs)


@functools.cache
def _pool() -> Any:
    """Returns the operation; other backends never come here, so that they need no TensorFlow."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def gradient(images: tf.Tensor, maxima: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        _, height, width, channels = images.shape
        rows, columns = height // 2, width // 2
        windows = tf.reshape(
            images[:, : 2 * rows, : 2 * columns], (-1, rows, 2, columns, 2, channels)
        )
        taken = tf.zeros_like(maxima, tf.bool)
        pixels = []
        for row, column in ((0, 0), (0, 1), (1, 0)):
            is_maximum = tf.equal(windows[:, :, row, :, column], maxima) & ~taken
            # The first maximum of a window takes all of its gradient, as in TensorFlow.
            pixels.append(tf.where(is_maximum, upstream, tf.zeros_like(upstream)))
            taken |= is_maximum
        pixels.append(tf.where(taken, tf.zeros_like(upstream), upstream))
        pairs = [tf.stack(pixels[:2], axis=3), tf.stack(pixels[2:], axis=3)]
        whole = tf.reshape(tf.stack(pairs, axis=2), (-1, 2 * rows, 2 * columns, channels))
        return tf.pad(whole, ((0, 0), (0, height - 2 * rows), (0, width - 2 * columns), (0, 0)))

    @tf.custom_gradient
    def pool(images: tf.Tensor) -> tuple[tf.Tensor, Any]:
        maxima = tf.nn.max_pool2d(images, 2, 2, "VALID")
        return maxima, lambda upstream: gradient(images, maxima, upstream)

    return pool
