"""Where in an image a network found a class: Grad-CAM and Grad-CAM++.

Grad-CAM (Selvaraju et al., ICCV 2017) weights the channels of a late convolutional map by the mean
gradient of the class's logit; Grad-CAM++ (Chattopadhay et al., WACV 2018) weights its positive
gradients by place. Both show where evidence lay, not what it was, and neither proves that the
network is right for the right reason: see Adebayo et al., NeurIPS 2018, whose check with random
weights is one of this project's tests.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import keras
import matplotlib
import numpy as np

from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import tensorflow as tf

VARIANTS = ("gradcam", "gradcam++")

#: Cells a side that a map needs: what ImageNet backbones end in at 224 px, and about a nucleus (21
#: of an ROI's 150 px) a cell. The stage-2 CNN ends in a single cell, which can point nowhere.
MINIMUM_SIDE = 7

_BATCH_SIZE = 32
_COLOURS = "viridis"
_OPACITY = 0.65


class GradCam:
    """Heat maps of a classifier.

    The map is the last one on the way to the output with at least `MINIMUM_SIDE` cells a side; if
    there is none, as behind a backbone on a small input, the last of the largest. A nested backbone
    counts as one step, so that its output is the last map that can be had of it.

    Args:
        model: Functional or sequential; one image input `[b, h, w, 3]`, 0..255, of fixed
            size; last a Dense layer, or a softmax over logits.
        variant: "gradcam" or "gradcam++".

    Raises:
        PapError: Keras runs on another backend than TensorFlow.
        ValueError: The variant is unknown, or the model has no such input, no convolutional map or
            no such output.

    Example:
        >>> model = keras.saving.load_model("model.keras")
        >>> heat = GradCam(model).maps(images, classes=[2] * len(images))
        >>> pictures = [overlay(*pair) for pair in zip(images, heat)]
    """

    def __init__(self, model: keras.Model, *, variant: str = "gradcam") -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
        if keras.backend.backend() != "tensorflow":
            raise PapError(
                f"Grad-CAM needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}"
            )
        self._variant = variant
        self._size = tuple(model.inputs[0].shape[1:])
        if len(model.inputs) != 1 or len(self._size) != 3 or None in self._size:
            raise ValueError(f"model {model.name!r}: expected one image of a fixed size as input")
        self._classes = model.outputs[0].shape[-1]
        steps = _steps(model.outputs[0])
        late, number = _last_map(model, steps)
        self._first, self._stride = _placement(steps[number:])
        last, features, _ = steps[0]
        self._last = last if isinstance(last, keras.layers.Dense) else None
        if self._last is None and not _is_softmax(last):
            raise ValueError(
                f"model {model.name!r}: expected a Dense layer or a softmax last, "
                f"got {type(last).__name__}"
            )
        self._model = keras.Model(model.inputs, [late, features])

    def maps(self, images: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Computes one map an image, in inference mode.

        Args:
            images: RGB, 0..255, uint8 or float `[n, h, w, 3]` at the model's input size.
            classes: Index of the class that each map is asked for, `[n]`.

        Returns:
            float32 `[n, h, w]`, 0..1; the highest value of a map is 1, and a map without any
            evidence for its class is all 0.

        Raises:
            ValueError: The images are not of the model's size, or the classes do not fit.
        """
        import tensorflow as tf

        images, wanted = np.asarray(images), np.asarray(classes)
        if images.ndim != 4 or images.shape[1:] != self._size:
            size = ", ".join(map(str, self._size))
            raise ValueError(f"images: expected [n, {size}], got {list(images.shape)}")
        if wanted.shape != images.shape[:1]:
            raise ValueError(f"classes: expected {len(images)}, one an image, got {wanted.shape}")
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self._classes:
            raise ValueError(f"classes: expected 0 to {self._classes - 1}, got {wanted.tolist()}")
        heat = np.zeros(images.shape[:3], np.float32)
        for start in range(0, len(images), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            pixels = tf.convert_to_tensor(images[rows], tf.float32)
            heat[rows] = self.heat(pixels, tf.convert_to_tensor(wanted[rows]))
        return heat

    def heat(self, pixels: "tf.Tensor", classes: "tf.Tensor") -> "tf.Tensor":
        """Computes one map an image with TensorFlow's own operations; serving traces it.

        Args:
            pixels: float32 RGB, 0..255, `[n, h, w, 3]` at the model's input size.
            classes: Integers, `[n]`.

        Returns:
            float32 `[n, h, w]`; see `maps`.
        """
        import tensorflow as tf

        heat = self._coarse(pixels, classes)
        for side, first, stride in zip(self._size[:2], self._first, self._stride, strict=True):
            places = _interpolation(side, heat.shape[1], first, stride)
            # The new side comes last, so that two turns place rows, then columns.
            heat = tf.tensordot(heat, tf.constant(places), [[1], [1]])
        highest = tf.reduce_max(heat, axis=(1, 2), keepdims=True)
        return tf.math.divide_no_nan(heat, highest)

    def _coarse(self, pixels: "tf.Tensor", classes: "tf.Tensor") -> "tf.Tensor":
        """Maps before placement, float32 `[n, rows, columns]`, 0 or more."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            # Frozen layers leave no trace on the tape unless what enters them is watched.
            tape.watch(pixels)
            late, features = self._model(pixels, training=False)
            logits = tf.cast(features, tf.float32)
            if self._last is not None:
                # Without the bias, which no gradient sees.
                logits = logits @ tf.convert_to_tensor(self._last.kernel)
            # Where softmax is sure its gradient rounds to 0, however strong the evidence is.
            score = tf.reduce_sum(tf.gather(logits, classes, axis=1, batch_dims=1))
        gradient = tape.gradient(score, late, unconnected_gradients="zero")
        late, gradient = (tf.cast(x, tf.float32) for x in (late, gradient))
        weights = tf.reduce_mean(gradient, axis=(1, 2))
        if self._variant == "gradcam++":
            weights = _plus_plus(late, gradient)
        return tf.nn.relu(tf.einsum("nhwc,nc->nhw", late, weights))


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a map over an image: the stronger the heat, the less of the image shows through.

    Args:
        image: uint8 RGB `[height, width, 3]`.
        heat: 0..1, `[h, w]`; stretched to the image where it is of another size.

    Returns:
        uint8 RGB `[height, width, 3]`.
    """
    height, width = image.shape[:2]
    heat = np.clip(cv2.resize(np.asarray(heat, np.float32), (width, height)), 0, 1)
    colours = 255 * matplotlib.colormaps[_COLOURS](heat)[..., :3]
    opacity = _OPACITY * heat[..., None]
    return np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)


def _plus_plus(late: "tf.Tensor", gradient: "tf.Tensor") -> "tf.Tensor":
    """Channel weights of Grad-CAM++ (its equation 19, for the exponential of the logit)."""
    import tensorflow as tf

    total = tf.reduce_sum(late, axis=(1, 2), keepdims=True)
    share = tf.math.divide_no_nan(gradient**2, 2 * gradient**2 + total * gradient**3)
    return tf.reduce_sum(share * tf.nn.relu(gradient), axis=(1, 2))


def _interpolation(pixels: int, cells: int, first: float, stride: float) -> np.ndarray:
    """Puts every cell of a map where its receptive field has its centre, along one axis.

    Args:
        pixels: Side of the image.
        cells: Side of the map.
        first: Centre of the first cell's receptive field, in pixels.
        stride: Distance to the next, in pixels.

    Returns:
        Weights of linear interpolation, float32 `[pixels, cells]`; the outermost cells reach to the
        edge.
    """
    places = np.clip((np.arange(pixels) - first) / stride, 0, cells - 1)
    distance = np.abs(places[:, None] - np.arange(cells))
    return np.maximum(1 - distance, 0).astype(np.float32)


#: One operation of a graph, what goes in first, and what comes out.
_Step = tuple[Any, Any, Any]


def _steps(tensor: Any) -> list[_Step]:
    """The way back from a tensor to the image, along the first input of every operation."""
    steps: list[_Step] = []
    while True:
        # A nested model's own `input` and `output` are its inner ones; only the history knows.
        operation, node, _ = tensor._keras_history
        inputs = operation._inbound_nodes[node].input_tensors
        if not inputs:
            return steps
        steps.append((operation, inputs[0], tensor))
        tensor = inputs[0]


def _last_map(model: keras.Model, steps: list[_Step]) -> tuple[Any, int]:
    """The map to look at, and the number of the step that it comes out of."""
    convolutions = [number for number, step in enumerate(steps) if _convolves(step[0])]
    maps = [
        (tensor, number)
        for number, (_, _, tensor) in enumerate(steps[: max(convolutions, default=-1) + 1])
        if len(tensor.shape) == 4
    ]
    if not maps:
        raise ValueError(f"model {model.name!r}: Grad-CAM needs a convolutional map, it has none")
    sides = [min(tensor.shape[1:3]) for tensor, _ in maps]
    wanted = min(MINIMUM_SIDE, max(sides))
    return next(late for late, side in zip(maps, sides, strict=True) if side >= wanted)


def _convolves(operation: Any) -> bool:
    if isinstance(operation, keras.Model):
        return any(_convolves(layer) for layer in operation.layers)
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    return isinstance(operation, kinds)


def _is_softmax(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Softmax) or (
        getattr(operation, "activation", None) is keras.activations.softmax
    )


def _placement(steps: list[_Step]) -> tuple[np.ndarray, np.ndarray]:
    """Where the cells of a map lie in the image.

    Stretching a map over the image, as is usual, is right where convolutions are padded. Those of
    the papers' networks are not: their maps cover the middle only, and a nucleus at 2 pixels from
    the centre of a stage-1 ROI would be shown at 3.6.

    Args:
        steps: From the map back to the image.

    Returns:
        Centre of the first receptive field and distance to the next, each float64 `[2]`, pixels
        down and to the right.
    """
    first, stride = np.zeros(2), np.ones(2)
    for operation, before, after in reversed(steps):
        kernel = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
        if kernel is not None and operation.padding == "valid":
            reach = (np.array(kernel) - 1) * getattr(operation, "dilation_rate", 1)
            step = np.array(operation.strides)
        else:
            step = np.divide(before.shape[1:3], after.shape[1:3])
            reach = step - 1
        first, stride = first + stride * reach / 2, stride * step
    return first, stride
