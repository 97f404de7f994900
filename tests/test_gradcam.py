"""Grad-CAM against its definition worked out by hand, and on phantoms whose nucleus is known."""

import keras
import numpy as np
import pytest
from scipy import stats

from replication.learning import gradcam, models
from replication.learning.gradcam import GradCam, overlay
from tfds_pap import phantom
from tfds_pap.errors import PapError

layers = keras.layers


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def network(size, *hidden, classes=3, seed=0, **last):
    """Input, scaling, the layers given, softmax."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for layer in hidden:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", **last)(x))


def naive_map(model, image, c, variant):
    """One padded 3 x 3 convolution, Flatten, Dense(relu), Dense: loops and finite differences."""
    kernel, bias, hidden, hidden_bias, last, last_bias = (
        np.asarray(w, np.float64) for w in model.get_weights()
    )
    pixels = np.pad(image / 255.0, ((1, 1), (1, 1), (0, 0)))
    size, channels = len(image), kernel.shape[-1]
    late = np.zeros((size, size, channels))
    for i, j, k in np.ndindex(late.shape):
        late[i, j, k] = max(0, (pixels[i : i + 3, j : j + 3] * kernel[..., k]).sum() + bias[k])

    def logit(features):
        return np.maximum(features.ravel() @ hidden + hidden_bias, 0) @ last[:, c] + last_bias[c]

    gradient = np.zeros_like(late)
    for place in np.ndindex(late.shape):
        step = np.zeros_like(late)
        step[place] = 1e-6
        gradient[place] = (logit(late + step) - logit(late - step)) / 2e-6
    heat = np.zeros((size, size))
    for k in range(channels):
        weight = 0.0
        for i, j in np.ndindex(heat.shape):
            g = gradient[i, j, k]
            if variant == "gradcam":
                weight += g / heat.size
            elif g > 0:
                weight += g**2 / (2 * g**2 + late[..., k].sum() * g**3) * g
        heat += weight * late[..., k]
    return np.maximum(heat, 0) / max(heat.max(), 1e-300)


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_equals_the_definition_in_plain_loops(variant):
    hidden = (layers.Conv2D(4, 3, padding="same", activation="relu"), layers.Flatten())
    model = network(8, *hidden, layers.Dense(6, activation="relu"))
    pixels, classes = images(3, 8), [0, 1, 2]
    found = GradCam(model, variant=variant).maps(pixels, classes)
    assert (found.dtype, found.shape) == (np.float32, (3, 8, 8))
    for heat, image, c in zip(found, pixels, classes, strict=True):
        np.testing.assert_allclose(heat, naive_map(model, image, c, variant), atol=2e-4)


def test_equals_cam_where_the_network_is_one_convolution_and_a_mean():
    convolution = layers.Conv2D(5, 3, padding="same", activation="relu")
    model = network(9, convolution, layers.GlobalAveragePooling2D())
    pixels = images(2, 9)
    late = np.asarray(convolution(pixels / np.float32(255)))
    cam = np.maximum(late @ model.layers[-1].get_weights()[0][:, 1], 0)
    expected = cam / cam.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(GradCam(model).maps(pixels, [1, 1]), expected, atol=1e-5)


def test_a_spot_is_shown_where_it_is():
    """Without padding the map covers the middle only, so that stretching it would move the spot."""
    model = network(
        32,
        layers.Conv2D(1, 9, kernel_initializer="ones"),
        layers.AveragePooling2D(2),
        layers.GlobalAveragePooling2D(),
        kernel_initializer="ones",
    )
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 9:12, 20:23] = 255
    heat = GradCam(model).maps(image, [0])[0]
    down, right = np.mgrid[:32, :32]
    centre = (heat * down).sum() / heat.sum(), (heat * right).sum() / heat.sum()
    assert centre == pytest.approx((10, 21), abs=0.6)


def test_sure_predictions_still_have_a_map():
    hidden = (layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D())
    model = network(12, *hidden)
    before = GradCam(model).maps(images(4, 12), [2] * 4)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, np.add(bias, [0, 0, 1000])])
    assert (model.predict(images(4, 12), verbose=0)[:, 2] == 1).all()
    np.testing.assert_allclose(GradCam(model).maps(images(4, 12), [2] * 4), before, atol=1e-6)
    assert before.max() == 1


def test_softmax_as_a_layer_of_its_own_gives_the_same_map():
    hidden = (layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D())
    model = network(12, *hidden)
    logits = layers.Dense(3)
    apart = keras.Sequential(
        [keras.Input((12, 12, 3)), *model.layers[1:-1], logits, layers.Softmax()]
    )
    logits.set_weights(model.layers[-1].get_weights())
    pixels = images(2, 12)
    np.testing.assert_allclose(
        GradCam(apart).maps(pixels, [0, 1]), GradCam(model).maps(pixels, [0, 1]), atol=1e-6
    )


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_no_evidence_is_all_zero(variant):
    pooled = layers.GlobalAveragePooling2D()
    model = network(12, layers.Conv2D(4, 3), pooled, kernel_initializer="zeros")
    heat = GradCam(model, variant=variant).maps(images(2, 12), [0, 1])
    np.testing.assert_array_equal(heat, np.zeros((2, 12, 12)))
    assert GradCam(model).maps(images(0, 12), []).shape == (0, 12, 12)


def test_batches_do_not_matter():
    model = models.stage1_cnn()
    pixels = images(35, 20)
    together = GradCam(model).maps(pixels, [1] * 35)
    alone = [GradCam(model).maps(pixels[i : i + 1], [1])[0] for i in (0, 31, 32, 34)]
    np.testing.assert_allclose(together[[0, 31, 32, 34]], alone, atol=1e-5)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_stage2_looks_before_its_last_single_cell(protocol):
    keras.utils.set_random_seed(0)
    heat = GradCam(models.stage2_cnn(protocol)).maps(images(1, 250), [2])[0]
    assert heat.shape == (250, 250)
    assert heat.std() > 0.01


@pytest.mark.parametrize(("name", "size"), [("mobilenetv2_035", 96), ("efficientnetb0", 64)])
def test_nested_backbones(name, size, tmp_path):
    keras.utils.set_random_seed(0)
    entry = models.backbone(name)
    backbone = entry.build(size)
    extractor = models.feature_extractor(backbone, size, entry.preprocessing)
    head = models.head(extractor.output.shape[-1], 4)
    model = models.classifier(extractor, head)
    pixels = images(4, size)
    found = GradCam(model).maps(pixels, [0, 1, 2, 3])
    assert found.shape == (4, size, size)
    assert np.isfinite(found).all()
    flip, scale, offset = models.PREPROCESSING[entry.preprocessing]
    assert not flip
    late = np.asarray(backbone((pixels * scale + offset).astype(np.float32), training=False))
    corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    expected = class_maps(head, late.astype(np.float64))[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (expected.max(axis=1) > 0).sum() >= 2
    np.testing.assert_allclose(shares(corners), shares(expected), atol=1e-3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(GradCam(loaded).maps(pixels, [0, 1, 2, 3]), found, atol=1e-5)


def shares(values):
    """Shares of a row's sum: interpolation need not meet the highest cell, which scales a map."""
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def class_maps(head, late):
    """One map for each class in turn, with the head's gradient worked out by hand."""
    norm, dense, last = (
        head.get_layer(name) for name in ("head_normalization", "head_dense", "probabilities")
    )
    scale, shift, mean, variance = norm.get_weights()
    factor = scale / np.sqrt(variance + norm.epsilon)
    (kernel, bias), (last_kernel, _) = dense.get_weights(), last.get_weights()
    heat = []
    for n, features in enumerate(late):
        x = (features.mean(axis=(0, 1)) - mean) * factor + shift
        active = x @ kernel + bias > 0
        heat.append(np.maximum(features @ (factor * (kernel @ (active * last_kernel[:, n]))), 0))
    return np.stack(heat)


def test_refuses_what_it_cannot_explain(monkeypatch):
    flat = network(8, layers.Flatten())
    with pytest.raises(ValueError, match="needs a convolutional map"):
        GradCam(flat)
    model = models.stage1_cnn()
    with pytest.raises(ValueError, match="expected one of gradcam, gradcam\\+\\+, got 'lime'"):
        GradCam(model, variant="lime")
    any_size = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="expected one image of a fixed size"):
        GradCam(any_size)
    bare = keras.Model(model.inputs, model.layers[2].output)
    with pytest.raises(ValueError, match="expected a Dense layer or a softmax last, got Conv2D"):
        GradCam(bare)
    found = GradCam(model)
    with pytest.raises(ValueError, match=r"expected \[n, 20, 20, 3\], got \[2, 32, 32, 3\]"):
        found.maps(images(2, 32), [0, 1])
    with pytest.raises(ValueError, match="one an image"):
        found.maps(images(2, 20), [0])
    with pytest.raises(ValueError, match="classes: expected 0 to 1"):
        found.maps(images(2, 20), [0, 2])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(PapError, match="needs KERAS_BACKEND=tensorflow, not jax"):
        GradCam(model)


def test_overlay_shows_the_image_where_it_is_cold():
    image = images(1, 16)[0]
    np.testing.assert_array_equal(overlay(image, np.zeros((16, 16))), image)
    heat = np.zeros((16, 16))
    heat[:, 8:] = 1
    shown = overlay(image, heat)
    assert (shown.dtype, shown.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(shown[:, :8], image[:, :8])
    # The hot end is one colour, whatever the stain below.
    assert shown[:, 8:].std(axis=(0, 1)).max() < 0.4 * image[:, 8:].std(axis=(0, 1)).min()
    assert overlay(image, np.ones((4, 4))).shape == image.shape


# ---- Sanity: does a map of the class lie on the nucleus, and is it the weights' doing?

SIZE, TRAINED, SHOWN = 64, 120, 40


def small_network(seed):
    blocks = []
    for filters in (16, 32, 32):
        blocks += [layers.Conv2D(filters, 3, padding="same", activation="relu")]
        blocks += [layers.MaxPooling2D(2)]
    return network(SIZE, *blocks, layers.GlobalAveragePooling2D(), classes=2, seed=seed)


@pytest.fixture(scope="module")
def trained():
    """A small network that tells HSIL from NILM on phantoms of 16 slides."""
    pixels = [
        phantom.draw_cell(label, seed, slide=seed % 16, size=SIZE)
        for seed in range(TRAINED)
        for label in ("NILM", "HSIL")
    ]
    model = small_network(seed=0)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    labels = np.tile([0, 1], TRAINED)
    model.fit(np.stack(pixels).astype(np.float32), labels, batch_size=32, epochs=15, verbose=0)
    return model


@pytest.fixture(scope="module")
def cells():
    """HSIL phantoms of four other slides, and where their nuclei are."""
    pairs = [
        phantom.draw_cell_with_mask("HSIL", 1000 + seed, slide=16 + seed % 4, size=SIZE)
        for seed in range(SHOWN)
    ]
    return tuple(np.stack(part) for part in zip(*pairs, strict=True))


def on_nucleus(heat, nuclei):
    """Mean heat on the nucleus and on the rest, each `[n]`."""
    return [(heat * part).sum(axis=(1, 2)) / part.sum(axis=(1, 2)) for part in (nuclei, ~nuclei)]


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_the_map_of_hsil_lies_on_the_nucleus(trained, cells, variant):
    pixels, nuclei = cells
    nucleus, rest = on_nucleus(GradCam(trained, variant=variant).maps(pixels, [1] * SHOWN), nuclei)
    # Measured: 39 of 40 phantoms, and 7.4 (gradcam) or 5.0 (gradcam++) times the heat of the rest.
    assert (nucleus > rest).mean() >= 0.85
    assert nucleus.mean() / rest.mean() > 2.5


def test_random_weights_destroy_the_map(trained, cells):
    """Adebayo et al. 2018: a map that survives random weights shows edges, not what was learnt."""
    pixels, nuclei = cells
    learnt = GradCam(trained).maps(pixels, [1] * SHOWN)
    correlations, ratios = [], []
    for seed in range(1, 9):
        heat = GradCam(small_network(seed)).maps(pixels, [1] * SHOWN)
        nucleus, rest = on_nucleus(heat, nuclei)
        ratios.append(nucleus.mean() / rest.mean() if heat.any() else 1)
        for a, b in zip(learnt, heat, strict=True):
            # The map of a class without evidence is constant, and ranks nothing.
            varies = a.any() and b.any()
            correlations.append(stats.spearmanr(a, b, axis=None).statistic if varies else 0)
    # Measured: rank correlation -0.11; nucleus to rest 0.91, from 0.01 to 1.01.
    assert abs(np.mean(correlations)) < 0.3
    assert np.median(ratios) < 1.3
