"""ONNX Runtime beside Keras: the same outputs, and a network that gives others is refused."""

import dataclasses
import importlib.util
from concurrent import futures

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from replication.learning import features, weights
from replication.runs import device, engines
from tfds_pap import preparing
from tfds_pap.errors import PapError


def network(scale=None):
    """Probabilities of four classes, or eight features of that scale."""
    keras.utils.set_random_seed(2)
    images = keras.Input((24, 24, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(images)
    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    if scale:
        x = keras.layers.Rescaling(scale)(x)
    else:
        x = keras.layers.Dense(4, activation="softmax", kernel_initializer="orthogonal")(x)
    return keras.Model(images, x, name="small")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8)


def tamper(path, factor):
    """Multiplies the weights of the convolution in a kept file."""
    model = onnx.load(path)
    kernel = max(model.graph.initializer, key=lambda one: np.prod(one.dims))
    values = numpy_helper.to_array(kernel) * np.float32(factor)
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    onnx.save(model, path)


def test_onnx_answers_as_keras_whatever_the_batch(images):
    model = network()
    expected = model.predict(images.astype(np.float32), verbose=0)
    # Converted whenever it is asked for: nothing of it is left.
    forward = engines.forward(model, "onnx")
    for part in (images, images[:1], images[2:5]):
        outputs = forward(part)
        assert outputs.dtype == np.float32
        rows = [np.flatnonzero((images == one).all(axis=(1, 2, 3)))[0] for one in part]
        np.testing.assert_allclose(outputs, expected[rows], atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the same answer to every image"


def test_a_kept_file_that_answers_otherwise_is_refused_with_the_figure(images, tmp_path):
    model = network()
    engines.forward(model, "onnx", kept_in=tmp_path)(images)
    [path] = tmp_path.iterdir()
    tamper(path, 1.01)
    forward = engines.forward(model, "onnx", kept_in=tmp_path)
    with pytest.raises(
        PapError, match=r"small-\w+\.onnx differs from Keras by 0\.0\d+ on 7 "
    ) as one:
        forward(images)
    assert "\n" not in str(one.value) and str(one.value).endswith("expected 1e-05 at most")
    # Not once let through, never checked again.
    with pytest.raises(PapError, match="differs from Keras"):
        forward(images)


def test_features_are_held_to_their_scale(images, tmp_path):
    large = network(scale=1e4)
    forward = engines.forward(large, "onnx", kept_in=tmp_path, relative=True)
    expected = large.predict(images.astype(np.float32), verbose=0)
    assert np.abs(forward(images) - expected).max() > 1e-5, "no difference to be held to a scale"
    [path] = tmp_path.iterdir()
    tamper(path, 1 + 1e-4)
    refused = r"differs from Keras by (9\.\de-05|0\.0001) of the largest feature"
    with pytest.raises(PapError, match=refused):
        engines.forward(large, "onnx", kept_in=tmp_path, relative=True)(images)
    # A difference below 1e-5 may be all there is of features that are small.
    small = network(scale=1e-4)
    engines.forward(small, "onnx", kept_in=tmp_path / "small", relative=True)(images)
    [path] = (tmp_path / "small").iterdir()
    tamper(path, 1.01)
    with pytest.raises(PapError, match="of the largest feature"):
        engines.forward(small, "onnx", kept_in=tmp_path / "small", relative=True)(images)


def test_what_is_no_number_is_refused(images, tmp_path):
    model = network()
    engines.forward(model, "onnx", kept_in=tmp_path)
    [path] = tmp_path.iterdir()
    tamper(path, np.nan)
    with pytest.raises(PapError, match="differs from Keras by nan"):
        engines.forward(model, "onnx", kept_in=tmp_path)(images)


def test_a_kept_file_serves_its_own_weights_alone(images, tmp_path):
    model = network()
    engines.forward(model, "onnx", kept_in=tmp_path)
    [path] = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    # Its layers have other names, as Keras counts them.
    same = network()
    engines.forward(same, "onnx", kept_in=tmp_path)(images)
    assert [path] == list(tmp_path.iterdir()) and path.stat().st_mtime_ns == written
    model.set_weights([2 * values for values in model.get_weights()])
    engines.forward(model, "onnx", kept_in=tmp_path)(images)
    assert len(list(tmp_path.iterdir())) == 2
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PapError, match=rf"{path}: not what ONNX Runtime reads \(.*\); delete it"):
        engines.forward(same, "onnx", kept_in=tmp_path)


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def export(self, path, **options):
        path.write_bytes(b"half")
        raise ValueError("no such operation\nand a stack")

    monkeypatch.setattr(keras.Model, "export", export)
    with pytest.raises(PapError, match=r"small has no form in ONNX \(no such operation\)$"):
        engines.forward(network(), "onnx", kept_in=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_had_is_one_line(monkeypatch):
    assert engines.resolve("auto") == engines.resolve("tensorflow") == "tensorflow"
    assert engines.resolve("onnx") == "onnx"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert engines.resolve("auto") == engines.resolve("jax") == "jax"
    for engine in ("onnx", "tensorflow"):
        with pytest.raises(PapError, match=f"--engine={engine}: needs KERAS_BACKEND=tensorflow"):
            engines.resolve(engine)
    monkeypatch.undo()
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else known(name)
    )
    # Installed or not: a result that nobody asked of ONNX Runtime is not its.
    assert engines.resolve("auto") == "tensorflow"
    with pytest.raises(PapError, match=r"tf2onnx is not installed; pip install 'pap-two-stage\[on"):
        engines.resolve("onnx")


def test_only_float32_is_exported(monkeypatch):
    before = keras.mixed_precision.dtype_policy()
    try:
        keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
        model = network()
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    with pytest.raises(PapError, match="computes in bfloat16; expected --precision=float32"):
        engines.forward(model, "onnx")


def test_threads_wait_for_the_check(monkeypatch):
    """Whoever comes first pays for the check; all get what a single thread gets."""
    images = np.random.default_rng(1).integers(0, 256, (48, 24, 24, 3), np.uint8)
    model, checks = network(), []
    check = engines._Checked._check
    monkeypatch.setattr(
        engines._Checked, "_check", lambda *given: checks.append(1) or check(*given)
    )
    forward = engines.forward(model, "onnx", threads=1)
    with futures.ThreadPoolExecutor(4) as pool:
        outputs = np.concatenate(list(pool.map(forward, np.split(images, 8))))
    np.testing.assert_allclose(outputs, engines.forward(model)(images), atol=1e-6)
    assert len(checks) == 1


def test_features_of_onnx_lie_in_a_store_of_their_own(
    manual_dir, data_dir, tiny_backbone, tmp_path
):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    spec = features.FeatureSpec(tiny_backbone, weights.find(tiny_backbone, "none"), 32, "torch")
    keras.utils.set_random_seed(0)
    by_keras = features.extract_features(builder, spec, tmp_path, policy=device.configure())
    keras.utils.set_random_seed(0)
    by_onnx = features.extract_features(
        builder, dataclasses.replace(spec, engine="onnx"), tmp_path, policy=device.configure()
    )
    assert (by_keras.about["engine"], by_onnx.about["engine"]) == ("tensorflow", "onnx")
    assert len(list(tmp_path.glob("tiny-*"))) == 2 and len(list(tmp_path.glob("onnx/*"))) == 1
    largest = np.abs(by_keras.features).max()
    np.testing.assert_allclose(by_onnx.features, by_keras.features, atol=1e-5 * largest)
    # Stores that lie there already keep their name.
    assert "engine" not in spec.key("") and spec.key("") == dataclasses.replace(
        spec, engine="tensorflow"
    ).key("")
