"""Dropout of large maps that costs little on a CPU; what is trained stays plain Keras.

TensorFlow compares, scales and selects in passes of their own, forward and backward: in bfloat16 a
seventh of a stage-2 step on a CPU with AMX (`benchmarks/fewer_passes.py --networks=p2`). Compiled
into one loop by XLA they give the same bits, from the numbers that Keras draws.
"""

import functools
from typing import Any

import keras

from replication.learning import graph


def for_training(model: keras.Model) -> keras.Model:
    """Returns the model to train on a CPU: the same layers and weights, the same random numbers.

    Args:
        model: A functional model, not compiled.

    Returns:
        A model of the same input and output; `model` itself where nothing is replaced.
    """
    if not any(map(_is_replaced, model.layers)):
        return model
    return keras.models.clone_model(
        model, clone_function=lambda layer: _Dropout(layer) if _is_replaced(layer) else layer
    )


def _is_replaced(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.Dropout
        and 0 < layer.rate < 1
        and layer.noise_shape is None
        and graph.is_large_map(layer.output)
    )


class _Dropout(keras.layers.Layer):
    """Dropout on the TensorFlow backend, with the rate and the seed of another layer."""

    def __init__(self, dropout: keras.layers.Dropout) -> None:
        super().__init__(name=dropout.name, dtype=dropout.dtype_policy)
        self.dropout = dropout
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns the values that stay, scaled so that their sum is expected to."""
        if not training:
            return inputs
        seed = keras.ops.cast(self.dropout.seed_generator.next(), "int32")
        return _drop(inputs, seed, self.dropout.rate)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of its input."""
        return input_shape


def _drop(values: Any, seed: Any, rate: float) -> Any:
    """Returns values of which a share is 0; other backends never come here."""
    import tensorflow as tf

    # Not of random bits: freed, they made NaN of weights (docs/decisions/shape.md).
    drawn = tf.random.stateless_uniform(tf.shape(values), seed, dtype=values.dtype)
    keep = functools.partial(_kept(), drawn=drawn, rate=rate)

    @tf.custom_gradient
    def dropped(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return keep(values), keep

    return dropped(values)


@functools.cache
def _kept() -> Any:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def kept(values: tf.Tensor, drawn: tf.Tensor, rate: float) -> tf.Tensor:
        scale = tf.constant(1 / (1 - rate), values.dtype)
        is_kept = drawn >= tf.constant(rate, values.dtype)
        return tf.where(is_kept, values * scale, tf.zeros_like(values))

    return kept
