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
    inner = {layer.name: folded(layer) for layer in model.layers if isinstance(layer, keras.Model)}
    pairs = _pairs(model)
    if (
        not pairs
        and not any(map(_is_converted, model.layers))
        and all(inner[name] is model.get_layer(name) for name in inner)
    ):
        return model
    removed = set(pairs.values())
    alone = {layer.name for layer in model.layers if _is_converted(layer)} - removed

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in pairs:
            return _with_normalization(layer, model.get_layer(pairs[layer.name]))
        if layer.name in removed:
            return _Nothing(name=layer.name, dtype=layer.dtype_policy)
        if layer.name in alone:
            return _NormalizedInOnePass(layer)
        return inner.get(layer.name, layer)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.trainable = model.trainable
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
    mean, variance = (
        np.asarray(weight, np.float64)
        for weight in (normalization.moving_mean, normalization.moving_variance)
    )
    scale = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale *= np.asarray(normalization.gamma, np.float64)
    offset = (bias - mean) * scale
    if normalization.center:
        offset += np.asarray(normalization.beta, np.float64)
    # A depthwise kernel ends in [channels, multiplier], any other in the channels of the output.
    spread = scale.reshape(kernel.shape[2:]) if _is_depthwise(layer) else scale
    copy = type(layer).from_config({**layer.get_config(), "use_bias": True})
    copy.build(layer.input.shape)
    copy.set_weights([kernel * spread, offset])
    copy.trainable = False
    return copy


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.DepthwiseConv2D


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
        channels = layer.moving_mean.shape[0]
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self._values = [
            np.asarray(value, np.float32)
            for value in (
                layer.gamma if layer.scale else ones,
                layer.beta if layer.center else zeros,
                layer.moving_mean,
                layer.moving_variance,
            )
        ]
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
