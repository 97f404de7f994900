"""Frozen batch normalization folded into the convolution before it, for computing alone.

What a frozen `BatchNormalization` does is one factor and one offset a channel, which a convolution
can do itself. TensorFlow leaves them apart: on a processor each is a pass over the whole map, and
in mixed_bfloat16 Keras computes it in float32, with a conversion before and behind. A ResNet50 took
a fifth of the time in mixed_bfloat16 and three quarters of it in float32
(`benchmarks/fewer_passes.py`).
"""

from typing import Any

import keras
import numpy as np

from replication.learning import graph


def folded(model: keras.Model) -> keras.Model:
    """Returns a model that computes the same in fewer passes; `model` itself is as it was.

    A convolution and the normalization of its output become one where both are frozen, the first
    has no activation, and nothing else reads what lies between. All other layers are shared, so
    that what is trained in the copy is trained in `model`; the copy of a frozen layer keeps the
    weights of this moment.

    Args:
        model: A functional model, which may hold others.

    Returns:
        A model of the same input and output, which differ by rounding; `model` where nothing can
        be folded.

    Example:
        >>> network = models.backbone("mobilenetv2_035").build(32)
        >>> network.trainable = False
        >>> plain, fewer = folding.count(network), folding.count(folding.folded(network))
        >>> plain, fewer
        (52, 0)
    """
    if not hasattr(model, "operations"):
        # A Sequential model, or one with a `call` of its own.
        return model
    replaced: dict[str, keras.layers.Layer] = {}
    for name, reader in _pairs(model).items():
        normalization = model.get_layer(reader)
        replaced[name] = _with_normalization(model.get_layer(name), normalization)
        replaced[reader] = _Nothing(name=reader, dtype=normalization.dtype_policy)
    for layer in model.layers:
        if isinstance(layer, keras.Model) and (inner := folded(layer)) is not layer:
            replaced[layer.name] = inner
        elif layer.name not in replaced and _is_converted(layer):
            replaced[layer.name] = _NormalizedInOnePass(layer)
    if not replaced:
        return model
    copy = keras.models.clone_model(
        model, clone_function=lambda layer: replaced.get(layer.name, layer)
    )
    if not model.trainable:
        # Said of a model it is said of all its layers, which are shared.
        copy.trainable = False
    return copy


def count(model: keras.Model) -> int:
    """Returns how many layers normalize batches, those of nested models among them."""
    return sum(
        count(layer) if isinstance(layer, keras.Model) else _normalizes(layer)
        for layer in model.layers
    )


def _normalizes(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.BatchNormalization


def _is_frozen_normalization(layer: keras.layers.Layer) -> bool:
    """Whether a layer normalizes the channels of a map `[b, h, w, c]` by what it has learnt."""
    return _normalizes(layer) and not layer.trainable and layer.axis in (-1, 3)


def _pairs(model: keras.Model) -> dict[str, str]:
    """Returns convolution -> normalization, by name."""
    layers = {layer.name: layer for layer in model.layers}
    return {
        name: reader
        for name, reader in graph.only_readers(model).items()
        if name in layers and reader in layers and _is_pair(layers[name], layers[reader])
    }


def _is_pair(layer: keras.layers.Layer, reader: keras.layers.Layer) -> bool:
    return (
        type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and not layer.trainable
        and _is_frozen_normalization(reader)
    )


def _with_normalization(
    layer: keras.layers.Layer, normalization: keras.layers.BatchNormalization
) -> keras.layers.Layer:
    """Returns a convolution that normalizes what it gives."""
    own = [np.asarray(weight, np.float64) for weight in layer.get_weights()]
    kernel, bias = own[0], own[1] if layer.use_bias else 0.0
    scale, offset, mean, variance = _learnt(normalization)
    scale = scale / np.sqrt(variance + normalization.epsilon)
    offset = offset + (bias - mean) * scale
    # A depthwise kernel ends in [channels, multiplier], any other in the channels of the output.
    depthwise = type(layer) is keras.layers.DepthwiseConv2D
    spread = scale.reshape(kernel.shape[2:]) if depthwise else scale
    copy = type(layer).from_config({**layer.get_config(), "use_bias": True})
    copy.build(layer.input.shape)
    copy.set_weights([kernel * spread, offset])
    copy.trainable = False
    return copy


def _learnt(layer: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Returns scale, offset, mean and variance of each channel."""
    mean, variance = layer.moving_mean, layer.moving_variance
    scale = layer.gamma if layer.scale else np.ones(mean.shape)
    offset = layer.beta if layer.center else np.zeros(mean.shape)
    return [np.asarray(value, np.float64) for value in (scale, offset, mean, variance)]


def _is_converted(layer: keras.layers.Layer) -> bool:
    """Whether Keras converts maps to float32 for it and back, which TensorFlow can do without."""
    return (
        _is_frozen_normalization(layer)
        and layer.compute_dtype == "bfloat16"
        and len(layer.output.shape) == 4
        and keras.backend.backend() == "tensorflow"
    )


class _NormalizedInOnePass(keras.layers.Layer):
    """A frozen normalization that follows no convolution, such as DenseNet's, in bfloat16."""

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy, trainable=False)
        self._values = [value.astype(np.float32) for value in _learnt(layer)]
        self._epsilon = layer.epsilon

    def call(self, inputs: Any, **arguments: Any) -> Any:
        """Returns the normalized map; factors and offsets stay in float32."""
        del arguments
        import tensorflow as tf

        scale, offset, mean, variance = self._values
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=self._epsilon,
            is_training=False,
        ).y

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of its input."""
        return input_shape


class _Nothing(keras.layers.Layer):
    """Stands where a normalization stood, and passes on what it is given."""

    def call(self, inputs: Any, **arguments: Any) -> Any:
        """Returns its input."""
        del arguments
        return inputs

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of its input."""
        return input_shape
