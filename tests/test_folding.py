"""Frozen normalization folded into convolutions: the same function, in fewer passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from replication.learning import (
    features,
    folding,
    graph,
    models,
    training,
    whole_model,
)
from replication.measures import evaluation
from replication.runs import device
from tfds_pap import preparing
from tfds_pap.errors import PapError

SIZE = 64


def told_apart(network, seed=0):
    """Gives every normalization statistics of its own, where untrained ones do nothing."""
    random = np.random.default_rng(seed)
    for layer in models.leaf_layers(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                drawn = random.uniform(0.6, 1.4, weight.shape)
                away = "gamma" in weight.path or "variance" in weight.path
                weight.assign(drawn if away else drawn - 1)
    network.trainable = False
    return network


@pytest.fixture
def bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def pixels(count=3, size=SIZE):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_035", "efficientnetb0"])
def test_a_backbone_computes_the_same(name):
    entry = models.backbone(name)
    network = told_apart(entry.build(SIZE))
    extractor = models.feature_extractor(network, SIZE, entry.preprocessing)
    before = [weight.numpy() for weight in extractor.weights]
    fewer = folding.folded(extractor)
    assert folding.count(extractor) > 40 and folding.count(fewer) == 0
    expected, found = (model(pixels(), training=False) for model in (extractor, fewer))
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=2e-6 * scale)
    if name != "efficientnetb0":  # It drops paths in training.
        # In training, too, what is frozen keeps its statistics.
        np.testing.assert_allclose(fewer(pixels(), training=True), expected, atol=2e-6 * scale)
    for weight, value in zip(extractor.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def small(trainable=False, **convolution):
    """Convolution - normalization - ReLU - depthwise convolution - normalization."""
    images = keras.Input((9, 9, 3))
    x = keras.layers.Conv2D(4, 3, name="conv", **convolution)(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = keras.layers.BatchNormalization(name="norm_2", scale=False, center=False, epsilon=0.1)(x)
    network = told_apart(keras.Model(images, x))
    network.trainable = trainable
    return network


@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_depthwise_kernels(bias):
    network = small(use_bias=bias)
    if bias:
        network.get_layer("conv").bias.assign([1.0, -2.0, 3.0, 0.5])
    fewer = folding.folded(network)
    assert folding.count(fewer) == 0
    images = pixels(2, 9)
    np.testing.assert_allclose(fewer(images), network(images), rtol=1e-4, atol=1e-3)


def test_only_what_is_frozen_and_read_once_is_folded():
    assert folding.folded(trained := small(trainable=True)) is trained
    assert folding.count(folding.folded(small(activation="relu"))) == 1
    images = keras.Input((9, 9, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(images)
    y = keras.layers.BatchNormalization()(x)
    twice = told_apart(keras.Model(images, keras.layers.Add()([x, y])))
    assert folding.folded(twice) is twice
    both = told_apart(keras.Model(images, [x, y]))
    assert folding.folded(both) is both
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    z = keras.layers.BatchNormalization()(shared(shared(images)))
    called_twice = told_apart(keras.Model(images, z))
    assert folding.folded(called_twice) is called_twice
    sequential = keras.Sequential([keras.Input((9, 9, 3)), keras.layers.BatchNormalization()])
    assert folding.folded(sequential) is sequential


def test_readers_inside_a_nested_model_count():
    images = keras.Input((9, 9, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(images)
    inside = keras.Input(x.shape[1:])
    inner = keras.Model(inside, keras.layers.ReLU()(inside), name="inner")
    y = keras.layers.BatchNormalization()(x)
    network = told_apart(keras.Model(images, keras.layers.Add()([inner(x), y])))
    assert "conv" not in graph.only_readers(network)
    assert folding.folded(network) is network


def test_bfloat16_without_a_convolution_before_is_one_operation(bfloat16):
    images = keras.Input((40, 40, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    network = told_apart(keras.Model(images, keras.layers.ReLU()(x)))
    fewer = folding.folded(network)
    assert folding.count(network) == 1 and folding.count(fewer) == 0
    given = pixels(2, 40) / 255
    expected, found = (np.asarray(model(given), np.float32) for model in (network, fewer))
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-7)
    assert (np.abs(found - expected) > 0).mean() < 0.2


def test_a_head_is_trained_and_the_backbone_is_not():
    entry = models.backbone("mobilenetv2_035")
    extractor = models.feature_extractor(told_apart(entry.build(SIZE)), SIZE, entry.preprocessing)
    model = models.classifier(extractor, models.linear_head(extractor.output_shape[-1], 4))
    taught = training.in_fewer_passes(
        model, device.configure(precision=keras.config.dtype_policy().name)
    )
    assert taught is not model and len(taught.trainable_variables) == 2
    frozen = [weight.numpy() for weight in extractor.weights]
    before = model.get_layer("probabilities").kernel.numpy()
    taught.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    taught.fit(pixels(4), np.arange(4), epochs=2, verbose=0)
    assert np.abs(model.get_layer("probabilities").kernel.numpy() - before).mean() > 0
    for weight, value in zip(extractor.weights, frozen, strict=True):
        np.testing.assert_array_equal(weight, value)
    expected = model.predict(pixels(), verbose=0)
    np.testing.assert_allclose(taught.predict(pixels(), verbose=0), expected, atol=1e-5)


def test_only_a_plain_processor_computes_so():
    assert device.configure().fewer_passes
    assert not device.configure(xla="on").fewer_passes
    assert not device.configure(strategy="mirrored").fewer_passes


def test_pooling_in_bfloat16_has_tensorflows_gradient(bfloat16):
    keras.utils.set_random_seed(0)
    images = keras.Input((60, 60, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(images)
    model = keras.Model(images, keras.layers.MaxPooling2D(2)(x))
    given = tf.constant(pixels(2, 60) / 255 - 0.5)
    gradients = []
    for network in (
        model,
        training.in_fewer_passes(
            model, device.configure(precision=keras.config.dtype_policy().name)
        ),
    ):
        with tf.GradientTape() as tape:
            answer = network(given)
            total = tf.reduce_sum(tf.cast(answer, tf.float32) ** 2)
        gradients.append(tape.gradient(total, model.trainable_variables))
    for plain, fewer in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, fewer)


@pytest.fixture
def joined(manual_dir, data_dir, tmp_path):
    """A head on the features of an untrained MobileNetV2 of 32 px, and what it says."""

    def made(precision):
        policy = device.configure(precision=precision)
        builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
        spec = features.feature_spec("mobilenetv2_035", source="none", size=32, precision=precision)
        store = features.extract_features(builder, spec, tmp_path / "features", policy=policy)
        head = models.head(store.input_size, len(store.index.class_names))
        positions = np.flatnonzero(store.index.splits == "validation")
        said = training.predict(head, store, positions)
        predictions = evaluation.Predictions.of(store.index, [("test", positions)], said)
        return whole_model.join(spec, head), spec, builder, predictions, policy

    before = keras.config.dtype_policy()
    yield made
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_joined_model_says_what_its_head_said(joined, precision):
    arguments = joined(precision)
    assert whole_model.largest_difference(*arguments) <= 1e-6


def test_a_joined_model_of_other_weights_is_refused(joined):
    model, *rest = joined("mixed_bfloat16")
    model.get_layer("probabilities").bias.assign([5.0, 0.0, 0.0, 0.0])
    with pytest.raises(PapError, match=r"^mobilenetv2_035: the whole model differs .* by 0\.\d+"):
        whole_model.largest_difference(model, *rest)


def test_half_precision_is_held_to_the_mean_and_float32_to_the_worst(bfloat16):
    said = np.full((50, 4), 0.25)
    off = said.copy()
    off[0] += [0.3, -0.1, -0.1, -0.1]
    half = models.linear_head(8, 4)
    full = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, dtype="float32")])
    assert whole_model.disagreement(full, off, said) == (pytest.approx(0.3), 1e-3)
    assert whole_model.disagreement(half, off, said) == (pytest.approx(0.3), 1e-3)
    mixed = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    assert whole_model.disagreement(mixed, off, said) == (pytest.approx(0.006), 0.1)
