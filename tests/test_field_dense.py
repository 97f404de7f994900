"""The dense form of stage 1 against the path that training takes, one ROI at a time."""

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from replication.fields.find.dense import Stage1
from replication.fields.find.lattice import Lattice
from replication.learning import models
from tfds_pap import decoding, phantom
from tfds_pap.errors import PapError


@pytest.fixture(scope="module")
def field():
    return phantom.draw_field(3, slide=3, width=330, height=270, cells=12)[0]


@pytest.fixture(scope="module")
def networks():
    keras.utils.set_random_seed(0)
    return {size: _lively(models.stage1_cnn(size)) for size in (20, 50)}


def _lively(model):
    """Gives a random network scores that differ, so that equality says something."""
    size = model.inputs[0].shape[1]
    rois = [
        phantom.draw_roi(label, n, size=size) for label in ("cell", "background") for n in (1, 2)
    ]
    logits = np.log(model.predict(np.stack(rois).astype(np.float32), verbose=0))
    margin = logits[:, 1] - logits[:, 0]
    last = model.layers[-1]
    last.kernel.assign(last.kernel * (2 / margin.std()))
    last.bias.assign([2 * margin.mean() / margin.std(), 0])
    return model


def naive(model, resize, pixels, roi, stride):
    """Crops, encodes, decodes and scores as `replication.predict` does with a file."""
    lattice = Lattice(pixels.shape[1], pixels.shape[0], roi, stride)
    size, images = model.inputs[0].shape[1], []
    for row in range(lattice.rows):
        for column in range(lattice.columns):
            crop = pixels[
                row * stride : row * stride + roi, column * stride : column * stride + roi
            ]
            png = cv2.imencode(".png", crop[..., ::-1])[1].tobytes()
            images.append(decoding.decode_and_resize(png, size, resize))
    said = model.predict(np.stack(images).astype(np.float32), verbose=0)
    return said[:, 1].reshape(lattice.rows, lattice.columns)


@pytest.mark.parametrize(
    ("size", "roi", "stride"),
    [
        (20, 150, 25),  # The papers': 3 phases an axis.
        (20, 150, 40),  # 3 phases of 16 samples.
        (20, 150, 15),  # 1 phase.
        (20, 100, 25),  # An odd step: windows must wait for the pooling.
        (20, 120, 35),
        (20, 160, 32),
        (50, 150, 25),
        (50, 150, 33),
        (50, 100, 30),
        (20, 151, 60),  # Prime: phases share nothing.
        (20, 20, 30),
    ],
)
@pytest.mark.parametrize("resize", sorted(decoding.RESIZE_METHODS))
def test_exact_equals_every_roi_by_itself(networks, field, size, roi, stride, resize):
    stage1 = Stage1(networks[size], resize, roi=roi, stride=stride)
    expected = naive(networks[size], resize, field, roi, stride)
    assert expected.std() > 0.01
    np.testing.assert_allclose(stage1.scores(field), expected, atol=1e-5)
    crops = Stage1(networks[size], resize, roi=roi, stride=stride, method="crops")
    np.testing.assert_allclose(crops.scores(field), expected, atol=1e-5)


def test_stride_of_one(networks, field):
    stage1 = Stage1(networks[20], "bilinear", stride=1)
    assert stage1.method == "exact"
    small = field[:158, :163]
    expected = naive(networks[20], "bilinear", small, 150, 1)
    np.testing.assert_allclose(stage1.scores(small), expected, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(150, 150), (174, 151), (175, 200), (331, 150)])
def test_fields_that_hold_few_rois(networks, field, width, height):
    pixels = cv2.resize(field, (width, height))
    stage1 = Stage1(networks[20], "nearest")
    expected = naive(networks[20], "nearest", pixels, 150, 25)
    np.testing.assert_allclose(stage1.scores(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "fast", "crops"])
@pytest.mark.parametrize(("width", "height"), [(149, 300), (300, 149), (1, 1)])
def test_a_field_smaller_than_an_roi_has_no_scores(networks, method, width, height):
    found = Stage1(networks[20], "nearest", method=method).scores(
        np.zeros((height, width, 3), np.uint8)
    )
    lattice = Lattice(width, height)
    assert found.shape == (lattice.rows, lattice.columns)
    assert found.size == 0


def test_fast_is_exact_where_its_grid_is_the_lattice(networks, field):
    exact, fast = (
        Stage1(networks[20], "bilinear", stride=30, method=method) for method in ("exact", "fast")
    )
    np.testing.assert_allclose(fast.scores(field), exact.scores(field), atol=1e-5)


def test_fast_gives_the_score_of_the_nearest_window(networks, field):
    fast = Stage1(networks[20], "nearest", stride=25, method="fast").scores(field)
    # Pooling by two samples of 7.5 px makes a grid of 15 px.
    grid = Stage1(networks[20], "nearest", stride=15, method="exact").scores(field)
    rows = np.minimum(np.round(np.arange(fast.shape[0]) * 25 / 15).astype(int), len(grid) - 1)
    columns = np.round(np.arange(fast.shape[1]) * 25 / 15).astype(int)
    columns = np.minimum(columns, grid.shape[1] - 1)
    np.testing.assert_allclose(fast, grid[np.ix_(rows, columns)], atol=1e-5)


def test_networks_with_other_local_layers(field):
    keras.utils.set_random_seed(1)
    images = keras.Input((20, 20, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.AveragePooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(8, activation="tanh")(x)
    x = keras.layers.Dense(5, activation="relu")(x)
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(x))
    model.layers[3].moving_mean.assign(np.linspace(-0.2, 0.3, 6))
    _lively(model)
    stage1 = Stage1(model, "bilinear", stride=25)
    assert stage1.method == "exact"
    np.testing.assert_allclose(
        stage1.scores(field), naive(model, "bilinear", field, 150, 25), atol=1e-5
    )


def _padded(x):
    return keras.layers.Flatten()(keras.layers.Conv2D(2, 3, padding="same")(x))


def _pooled(x):
    return keras.layers.GlobalAveragePooling2D()(x)


def _branched(x):
    return keras.layers.Flatten()(keras.layers.Concatenate()([x, keras.layers.ReLU()(x)]))


@pytest.mark.parametrize(
    ("body", "why"),
    [(_padded, "pads"), (_pooled, "0 layers that flatten"), (_branched, "no chain")],
)
def test_a_network_without_a_convolutional_form_is_refused(field, body, why):
    images = keras.Input((20, 20, 3))
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(body(images)))
    with pytest.raises(PapError, match=rf"{why}.*--method=crops takes any network"):
        Stage1(model, "nearest")
    crops = Stage1(model, "nearest", method="crops").scores(field)
    np.testing.assert_allclose(crops, naive(model, "nearest", field, 150, 25), atol=1e-5)


def test_an_interpolated_roi_smaller_than_the_input_is_refused(networks, field):
    with pytest.raises(PapError, match="--roi=40: expected at least the network's 50 px"):
        Stage1(networks[50], "bilinear", roi=40, stride=30)
    crops = Stage1(networks[50], "bilinear", roi=40, stride=30, method="crops").scores(field)
    expected = naive(networks[50], "bilinear", field, 40, 30)
    np.testing.assert_allclose(crops, expected, atol=1e-5)


def test_unknown_names_are_refused(networks):
    with pytest.raises(ValueError, match="method 'slow': expected one of exact, fast, crops"):
        Stage1(networks[20], "nearest", method="slow")
    with pytest.raises(ValueError, match="resize method 'cubic'"):
        Stage1(networks[20], "cubic")


def test_real_fields(networks, shared_data):
    path = sorted((shared_data / "lbc_fields_full").rglob("*.jpg"))[0]
    pixels = cv2.imread(str(path))[500:1000, 600:1200, ::-1]
    stage1 = Stage1(networks[20], "nearest")
    expected = naive(networks[20], "nearest", pixels, 150, 25)
    np.testing.assert_allclose(stage1.scores(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(("roi", "stride"), [(96, 24), (148, 37), (120, 30)])
@pytest.mark.parametrize("resize", sorted(decoding.RESIZE_METHODS))
@pytest.mark.parametrize("size", [20, 50])
def test_exact_is_exact_where_float32_would_place_samples_otherwise(
    networks, field, size, roi, stride, resize
):
    expected = naive(networks[size], resize, field, roi, stride)
    stage1 = Stage1(networks[size], resize, roi=roi, stride=stride)
    np.testing.assert_allclose(stage1.scores(field), expected, atol=1e-5)
    # Nearest neighbours are looked up in whole numbers, and need no crops.
    assert resize != "nearest" or stage1.method == "exact"


def test_half_a_pixel_matters(networks, field):
    """What the exact form is for: boxes by their corners give other scores."""
    lattice = Lattice(field.shape[1], field.shape[0])
    rows, columns = np.divmod(np.arange(lattice.rois), lattice.columns)
    tops, lefts = rows * 25.0, columns * 25.0
    scale = np.array([field.shape[0] - 1, field.shape[1] - 1] * 2, np.float32)
    boxes = np.stack([tops, lefts, tops + 149, lefts + 149], 1) / scale
    crops = tf.image.crop_and_resize(
        field[None].astype(np.float32), boxes, np.zeros(len(boxes), np.int32), (20, 20)
    )
    said = networks[20].predict(crops, verbose=0)[:, 1].reshape(lattice.rows, lattice.columns)
    exact = Stage1(networks[20], "bilinear").scores(field)
    assert np.abs(said - exact).max() > 0.01
