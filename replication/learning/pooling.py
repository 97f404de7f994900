"""Max pooling that costs little to train on a CPU; the trained model itself stays plain Keras.

TensorFlow's `MaxPoolGrad` is the largest single operation of a stage-2 step on a CPU: it looks for
each maximum again, one window after another. Comparing whole rows and columns at once, compiled
into one loop by XLA, gives the same bits in an eighth of the time (`benchmarks/training_step.py`).

A convolution with a ReLU before it is trained together with it: whether a gradient passes the ReLU
is seen in the maxima, which are a quarter as many.

In bfloat16 oneDNN (in TensorFlow 2.21, on a processor with AMX) finds the gradient of some filters
with memory that nobody has written, times zero: NaN where that holds no numbers, which the next
ReLU makes 0 (`benchmarks/unwritten_memory.py`). P2's second convolution is one of these.
"""

import functools
from typing import Any

import keras

from replication.learning import graph

#: Filters of fewer channels, or gradients of fewer columns, were found free of unwritten memory,
#: and so were gradients of whole blocks of columns.
_CHANNELS, _COLUMNS, _BLOCK = 32, 121, 64


def for_training(model: keras.Model) -> keras.Model:
    """Returns the model to train on a CPU: the same layers and weights, another gradient.

    Only max pooling of 2 x 2 pixels is replaced, where its input is large. Layers are shared, so
    what is trained is `model`, which can be saved and loaded without this package.

    Args:
        model: A functional model, not compiled.

    Returns:
        A model of the same input and output; `model` itself where nothing is replaced.
    """
    layers = {layer.name: layer for layer in model.layers}
    replaced = {name for name, layer in layers.items() if _is_replaced(layer)}
    if not replaced:
        return model
    before = {
        reader: layers[name]
        for name, reader in graph.only_readers(model).items()
        if reader in replaced and _is_joined(layers.get(name))
    }
    joined = {layer.name for layer in before.values()}

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in joined:
            return _Convolution(layer)
        if layer.name in before:
            return _Maxima(before[layer.name], layer)
        if layer.name in replaced:
            return _MaxPooling2D.from_config(layer.get_config())
        return layer

    return keras.models.clone_model(model, clone_function=copied)


def _is_replaced(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.MaxPooling2D
        and tuple(layer.pool_size) == tuple(layer.strides) == (2, 2)
        and layer.padding == "valid"
        and layer.data_format == "channels_last"
        and graph.is_large_map(layer.input)
    )


def _is_joined(layer: keras.layers.Layer | None) -> bool:
    return layer is not None and (
        type(layer) is keras.layers.Conv2D
        and layer.activation is keras.activations.relu
        and layer.use_bias
        and layer.data_format == "channels_last"
    )


class _MaxPooling2D(keras.layers.MaxPooling2D):
    """Max pooling of 2 x 2 pixels on the TensorFlow backend."""

    def call(self, inputs: Any) -> Any:
        """Returns the maximum of each window, `[b, h // 2, w // 2, c]`."""
        return _pool()(inputs)


class _Convolution(keras.layers.Layer):
    """A convolution without its bias and ReLU, which the layer behind it adds."""

    def __init__(self, convolution: keras.layers.Conv2D) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self.convolution = convolution
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns sums of products, `[b, h, w, c]`."""
        layer = self.convolution
        if self.compute_dtype == "bfloat16" and _reads_unwritten(layer):
            return _convolve()(inputs, keras.ops.cast(layer.kernel, inputs.dtype))
        return layer.convolution_op(inputs, layer.kernel)


def _reads_unwritten(layer: keras.layers.Conv2D) -> bool:
    return (
        layer.padding == "valid"
        and tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
        and layer.groups == 1
        and layer.kernel.shape[2] >= _CHANNELS
        and layer.output.shape[2] >= _COLUMNS
    )


class _Maxima(keras.layers.Layer):
    """Bias and ReLU of a convolution, and the maximum of each window of 2 x 2 pixels."""

    def __init__(
        self, convolution: keras.layers.Conv2D, pooling: keras.layers.MaxPooling2D
    ) -> None:
        super().__init__(name=pooling.name, dtype=pooling.dtype_policy)
        self.convolution = convolution
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns the maximum of each window, `[b, h // 2, w // 2, c]`."""
        return _rectified_pool()(inputs, keras.ops.cast(self.convolution.bias, inputs.dtype))


@functools.cache
def _convolve() -> Any:
    """Returns a convolution of `[b, h, w, c]` whose gradient is found in whole blocks."""
    import tensorflow as tf

    how = {"strides": [1] * 4, "padding": "VALID"}

    @tf.custom_gradient
    def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            more = [[0, 0], [0, 0], [0, -upstream.shape[2] % _BLOCK], [0, 0]]
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **how
            )
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=tf.pad(images, more),
                filter_sizes=kernel.shape,
                out_backprop=tf.pad(upstream, more),
                **how,
            )
            return of_images, of_kernel

        return tf.nn.conv2d(images, kernel, **how), gradient

    return convolve


@functools.cache
def _unpool() -> Any:
    """Returns the gradient; other backends never come here, so that they need no TensorFlow."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def gradient(
        images: tf.Tensor, maxima: tf.Tensor, upstream: tf.Tensor, *, rectified: bool
    ) -> tf.Tensor:
        if rectified:
            upstream = tf.where(maxima > 0, upstream, tf.zeros_like(upstream))
        _, height, width, channels = images.shape
        exact = images.dtype
        if exact == tf.bfloat16:
            # XLA computes in bfloat16 by way of float32, where comparing bits does.
            images, maxima, upstream = (
                tf.bitcast(value, tf.uint16) for value in (images, maxima, upstream)
            )
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
        whole = tf.pad(whole, ((0, 0), (0, height - 2 * rows), (0, width - 2 * columns), (0, 0)))
        return whole if whole.dtype == exact else tf.bitcast(whole, exact)

    return gradient


@functools.cache
def _pool() -> Any:
    """Returns max pooling of `[b, h, w, c]`."""
    import tensorflow as tf

    @tf.custom_gradient
    def pool(images: tf.Tensor) -> tuple[tf.Tensor, Any]:
        maxima = tf.nn.max_pool2d(images, 2, 2, "VALID")
        return maxima, lambda upstream: _unpool()(images, maxima, upstream, rectified=False)

    return pool


@functools.cache
def _rectified_pool() -> Any:
    """Returns max pooling of sums `[b, h, w, c]` with a bias `[c]`, after a ReLU."""
    import tensorflow as tf

    @tf.custom_gradient
    def pool(sums: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        images = tf.nn.relu(tf.nn.bias_add(sums, bias))
        maxima = tf.nn.max_pool2d(images, 2, 2, "VALID")

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            whole = _unpool()(images, maxima, upstream, rectified=True)
            # TensorFlow makes it one operation with the gradient of the kernel.
            return whole, tf.raw_ops.BiasAddGrad(out_backprop=whole)

        return maxima, gradient

    return pool
