"""Dropout in one pass on a CPU: the same bits as Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from replication.learning import dropout, models, training
from replication.runs import device


@pytest.fixture(params=["float32", "mixed_bfloat16"])
def precision(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def both(rate, shape=(2, 60, 61, 5)):
    """Keras's layer and what stands in for it, each with the same seed."""
    pairs = []
    for _ in range(2):
        images = keras.Input(shape[1:])
        pairs.append(keras.Model(images, keras.layers.Dropout(rate, seed=7)(images)))
    plain, taught = pairs[0], dropout.for_training(pairs[1])
    assert taught is not pairs[1]
    return plain, taught


def answers(model, values, upstream):
    """Two steps: what is drawn in the second must follow from the first."""
    found = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(values)
            answer = model(values, training=True)
        found += [answer, tape.gradient(answer, values, upstream)]
    return [tf.cast(each, tf.float32).numpy() for each in found]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_same_bits_as_keras(precision, rate):
    plain, taught = both(rate)
    kind = "bfloat16" if "bfloat16" in precision else "float32"
    values, upstream = (
        tf.cast(tf.random.stateless_normal((2, 60, 61, 5), (3, seed)), kind) for seed in (4, 5)
    )
    expected, found = (answers(model, values, upstream) for model in (plain, taught))
    for left, right in zip(expected, found, strict=True):
        np.testing.assert_array_equal(left, right)
    # Two steps draw other numbers, at the rate up to what bfloat16 can tell apart.
    assert (found[0] != found[2]).any()
    assert abs((found[0] == 0).mean() - rate) < 0.02
    np.testing.assert_array_equal(taught(values, training=False), values)


def test_small_maps_and_other_layers_stay():
    images = keras.Input((40, 120, 2))
    x = keras.layers.Dropout(0.3)(images)
    x = keras.layers.Dropout(0.0)(keras.layers.Resizing(60, 60)(x))
    x = keras.layers.Dropout(0.3, noise_shape=(None, 1, 1, 2))(x)
    model = keras.Model(images, keras.layers.SpatialDropout2D(0.2)(x))
    assert dropout.for_training(model) is model


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_the_papers_network_trains_to_the_same_bits(precision, protocol):
    """All that stands in for Keras on a processor together, batches of two sizes."""
    weights = []
    for fewer in (False, True):
        keras.utils.set_random_seed(0)
        model = models.stage2_cnn(protocol, 210)
        policy = device.DevicePolicy("CPU", False, precision, fewer_passes=fewer)
        trained = training.in_fewer_passes(model, policy)
        assert (trained is not model) == fewer
        trained.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        trained.optimizer.build(trained.trainable_variables)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (7, 210, 210, 3), np.uint8)
        data = tf.data.Dataset.from_tensor_slices((pixels, random.integers(0, 4, 7))).batch(4)
        trained.fit(data, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for left, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(left, right)
