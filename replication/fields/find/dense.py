"""Stage 1 over a whole field at once, with the scores that every ROI would get by itself.

Resizing an ROI of S px to n samples takes one sample every S/n px. Two ROIs share samples where
their distance is a whole number of samples: with a stride of 25 px, S = 150 and n = 20 that is 10/3
samples, so every third ROI of a row does. The field is therefore resized once per phase, three by
three times, always by the function that resizes a single ROI. On each of these images the network
runs as a convolutional one, since a dense layer on a flattened map is a convolution with a kernel
of the size of that map.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

from replication.runs import engines
from tfds_pap import decoding
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import ROI_SIZE

METHODS = ("exact", "fast", "crops")

#: What may stand before the flattening: layers that do the same at every place.
_LOCAL = (
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.Conv2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
)

#: Rows of phases that are convolved at the same time, which bounds memory at small strides.
_PHASES_AT_ONCE = 1

#: ROIs that `crops` scores at a time.
_CROPS = 1024


class Stage1:
    """Scores every ROI of a field with a network of stage 1.

    Args:
        model: From RGB, 0..255, `[b, n, n, 3]` to probabilities `[b, 2]` (background, cell).
        resize: How its images were resized: one of `decoding.RESIZE_METHODS`.
        roi: Side of the ROI, pixels.
        stride: Pixels from one ROI to the next.
        method: "exact": the score that each ROI gets by itself, at the price of a convolution of
            the field per phase. Where that cannot be had this is "crops": phases share nothing, as
            for a prime S; or an interpolated sample would not be that of the single ROI, as it
            depends on pixels beyond it ("antialiased") or S/n is no binary fraction (S = 96, 120 or
            148 and n = 50), so that float32 rounds its place otherwise far from the corner.
            "fast": one phase only; an ROI gets the score of the nearest window on the grid of the
            network's pooling, up to half a grid step away. "crops": each ROI resized and scored by
            itself, in batches.

    Attributes:
        roi: Side of the ROI, pixels.
        stride: Pixels from one ROI to the next.
        method: "exact", "fast", or "crops", also where "exact" fell back to it.

    Raises:
        PapError: If the network has no convolutional form, or the ROI is smaller than its
            input and interpolated, so that an ROI's samples depend on where it ends.

    Example:
        >>> from replication import models
        >>> stage1 = Stage1(models.stage1_cnn(), "nearest")
        >>> stage1.scores(np.zeros((1536, 2048, 3), np.uint8)).shape
        (56, 76)
    """

    def __init__(
        self,
        model: keras.Model,
        resize: str,
        *,
        roi: int = ROI_SIZE,
        stride: int = 25,
        method: str = "exact",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
        decoding.check_method(resize)
        self.roi, self.stride, self.method = roi, stride, method
        self._model, self._resize = model, resize
        self._size = model.inputs[0].shape[1]
        if method != "crops":
            self._plan()
        self._compiled: Callable[[np.ndarray], np.ndarray] | None = None
        self._dense: Callable = self.graph
        if keras.backend.backend() == "tensorflow":
            # Blocks of a field differ in size: one trace serves all.
            fields = tf.TensorSpec([None, None, 3], tf.uint8)
            self._dense = tf.function(self.graph, input_signature=[fields])
        elif self.method != "crops":
            # No graph of TensorFlow holds another backend's layers.
            self._compiled = engines.jax_function(self._network, model.variables)
        crops = tf.TensorSpec([None, roi, roi, 3], tf.uint8)
        self._resized = tf.function(
            lambda crops: decoding.resize(crops, self._size, self._size, resize),
            input_signature=[crops],
        )
        self._forward = engines.forward(model)

    def _plan(self) -> None:
        """Finds the phases; falls back to crops where ROIs of a phase would not overlap."""
        backend = keras.backend.backend()
        if backend not in ("tensorflow", "jax"):
            raise PapError(
                f"--method={self.method} needs KERAS_BACKEND=tensorflow or jax, not {backend}; "
                "--method=crops takes any"
            )
        self._local, self._kernel, self._bias, self._rest, pooling = _convolutional(self._model)
        if self.roi < self._size and self._resize != "nearest":
            raise PapError(
                f"--roi={self.roi}: expected at least the network's {self._size} px for "
                f"--method={self.method}; --method=crops takes any"
            )
        # In lowest terms: `every` ROIs are `step` samples apart, and both are whole numbers.
        samples, pixels = self.stride * self._size, self.roi
        step, every = samples // math.gcd(samples, pixels), pixels // math.gcd(samples, pixels)
        # Windows must start where the network's pooling starts.
        again = pooling // math.gcd(step, pooling)
        self._pooling, self._step, self._every = pooling, step * again, every * again
        if self.method == "exact" and not (self._step <= self._size and self._shareable()):
            self.method = "crops"
        self._apart = 1 if self.method == "fast" else self._step // pooling

    def _shareable(self) -> bool:
        """Whether a sample of the whole field has, to the last bit, the value it has in its ROI."""
        denominator = self._size // math.gcd(self._size, self.roi)
        binary = denominator & (denominator - 1) == 0
        return self._resize == "nearest" or (self._resize != "antialiased" and binary)

    def scores(self, field: np.ndarray) -> np.ndarray:
        """Scores every ROI.

        Args:
            field: uint8 RGB `[height, width, 3]`.

        Returns:
            float32 `[rows, columns]`, the probability of a cell in each ROI of the `Lattice`.
        """
        if self.method != "crops":
            return self._dense(field).numpy()
        rows, columns = (int(count) for count in self._counts(field.shape[0], field.shape[1]))
        tops, lefts = np.divmod(np.arange(rows * columns), max(columns, 1)) * np.array(self.stride)
        scores = [np.zeros(0, np.float32)]
        for first in range(0, len(tops), _CROPS):
            part = slice(first, first + _CROPS)
            rois = sliding_window_view(field, (self.roi, self.roi, 3))[tops[part], lefts[part], 0]
            scores.append(self._forward(self._resized(rois).numpy())[:, -1])
        return np.concatenate(scores).reshape(rows, columns)

    def graph(self, field: tf.Tensor) -> tf.Tensor:
        """The same in TensorFlow's operations, for "exact" and "fast".

        Of another backend only the resizing is TensorFlow's, and the field must be at hand.

        Args:
            field: uint8 `[height, width, 3]` of any size.

        Returns:
            float32 `[rows, columns]`.
        """
        shape = tf.shape(field)
        rows, columns = self._counts(shape[0], shape[1])
        # A field that is smaller than an ROI has none, and nothing to resize.
        return tf.cond(
            tf.minimum(rows, columns) > 0,
            lambda: (self._one_phase if self.method == "fast" else self._all_phases)(
                field, rows, columns
            ),
            lambda: tf.zeros([rows, columns]),
        )

    def _counts(self, height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def count(pixels: tf.Tensor) -> tf.Tensor:
            return tf.maximum(0, (pixels - self.roi) // self.stride + 1)

        return count(height), count(width)

    def _all_phases(self, field: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        every = self._every
        # Phases hold one window more or less: all get the size of the first, and what lies beyond
        # the field is cut off at the end.
        down, across = -(-rows // every), -(-columns // every)
        height, width = self._samples(down), self._samples(across)

        def image(rows_from: tf.Tensor, columns_from: int) -> tf.Tensor:
            top, pixels_down, samples_down = self._span(rows, rows_from)
            left, pixels_across, samples_across = self._span(columns, columns_from)
            resized = decoding.resize(
                field[top : top + pixels_down, left : left + pixels_across],
                samples_down,
                samples_across,
                self._resize,
            )
            missing = [[0, height - samples_down], [0, width - samples_across], [0, 0]]
            return tf.pad(resized, missing)

        def one_row_of_phases(rows_from: tf.Tensor) -> tf.Tensor:
            images = tf.stack([image(rows_from, number) for number in range(every)])
            scores = self._convolve(images)
            return tf.reshape(tf.transpose(scores, [1, 2, 0]), [down, across * every])

        by_phase = tf.map_fn(
            one_row_of_phases,
            tf.range(every),
            fn_output_signature=tf.TensorSpec([None, None], tf.float32),
            parallel_iterations=_PHASES_AT_ONCE,
        )
        interleaved = tf.reshape(tf.transpose(by_phase, [1, 0, 2]), [down * every, across * every])
        return interleaved[:rows, :columns]

    def _one_phase(self, field: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(field)
        divisor = math.gcd(self.roi, self._size)
        # As many samples as fit into whole pixels, so that none is drawn out.
        units = shape[:2] // (self.roi // divisor)
        pixels, samples = units * (self.roi // divisor), units * (self._size // divisor)
        shrunken = decoding.resize(
            field[: pixels[0], : pixels[1]], samples[0], samples[1], self._resize
        )
        scores = self._convolve(shrunken[None])[0]

        def nearest(count: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
            grid = self._pooling * self.roi
            place = (2 * tf.range(count) * self.stride * self._size + grid) // (2 * grid)
            return tf.minimum(place, windows - 1)

        scores = tf.gather(scores, nearest(rows, tf.shape(scores)[0]))
        return tf.gather(scores, nearest(columns, tf.shape(scores)[1]), axis=1)

    def _span(self, count: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the ROIs `first`, `first + every`, ... cover: first pixel, pixels, samples."""
        # A phase without any ROI computes that of the last one, which is cut off.
        first = tf.minimum(first, count - 1)
        windows = (count - 1 - first) // self._every + 1
        pixels = (windows - 1) * self._every * self.stride + self.roi
        return first * self.stride, pixels, self._samples(windows)

    def _samples(self, windows: tf.Tensor) -> tf.Tensor:
        return (windows - 1) * self._step + self._size

    def _convolve(self, images: tf.Tensor) -> tf.Tensor:
        """From uint8 `[b, h, w, 3]` to the scores of windows `_apart` pooled places apart."""
        if self._compiled is None:
            return tf.cast(self._network(images), tf.float32)
        return tf.constant(self._compiled(images.numpy()))

    def _network(self, images: Any) -> Any:
        """The same with the arrays of Keras's backend."""
        x = keras.ops.cast(images, "float32")
        for layer in self._local:
            x = layer(x, training=False)
        x = keras.ops.conv(x, keras.ops.cast(self._kernel(), x.dtype), self._apart, "valid")
        x = x + keras.ops.cast(self._bias, x.dtype)
        for layer in self._rest:
            x = layer(x, training=False)
        return x[..., -1]


def _convolutional(
    model: keras.Model,
) -> tuple[list, Callable[[], Any], keras.Variable, list, int]:
    """Splits a network where it flattens its map.

    Returns:
        Layers before, the first dense layer as a kernel `[h, w, c, units]` and a bias, the layers
        behind (that layer's activation first), and samples per place of the map.
    """
    layers = list(model.layers)
    flatten = [i for i, layer in enumerate(layers) if isinstance(layer, keras.layers.Flatten)]
    if len(flatten) != 1:
        raise _no_form(model, f"{len(flatten)} layers that flatten, expected one")
    if any(after.input is not before.output for before, after in itertools.pairwise(layers)):
        raise _no_form(model, "its layers are no chain")
    local, behind = layers[1 : flatten[0]], layers[flatten[0] + 1 :]
    pooling = 1
    for layer in local:
        if not isinstance(layer, _LOCAL):
            raise _no_form(model, f"its layer {layer.name} is a {type(layer).__name__}")
        if getattr(layer, "padding", "valid") != "valid":
            raise _no_form(model, f"its layer {layer.name} pads")
        pooling *= _steps(layer)
    while behind and isinstance(behind[0], keras.layers.Dropout):
        behind = behind[1:]
    if not all(isinstance(layer, keras.layers.Dense | keras.layers.Dropout) for layer in behind):
        raise _no_form(model, "it flattens its map for other than dense layers")
    dense, shape = behind[0], layers[flatten[0]].input.shape[1:]

    def kernel() -> Any:
        return keras.ops.reshape(dense.kernel, [*shape, dense.units])

    rest = [keras.layers.Activation(dense.activation), *behind[1:]]
    return local, kernel, dense.bias, rest, pooling


def _steps(layer: keras.layers.Layer) -> int:
    across = set(getattr(layer, "strides", (1, 1)))
    if len(across) != 1:
        raise PapError(f"layer {layer.name}: expected the same stride in both directions")
    return across.pop()


def _no_form(model: keras.Model, why: str) -> PapError:
    return PapError(
        f"{model.name} has no convolutional form ({why}); --method=crops takes any network"
    )
