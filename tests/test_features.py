import dataclasses
import io
import os
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from commands import command
from conftest import make_tree

from replication.learning import features, models, training, weights
from replication.runs.device import DevicePolicy
from tfds_pap import augmentation, pipeline, preparing, roles
from tfds_pap.errors import PapError

#: 52 images in batches of 8, the last one filled up.
PASSES = 56

POLICY = DevicePolicy("CPU", False, "float32")


@pytest.fixture(scope="module")
def builder(manual_dir, data_dir):
    return preparing.prepare("pap_db4", "original", manual_dir, data_dir)


@pytest.fixture
def spec(tiny_backbone):
    found = weights.find(tiny_backbone, "none")
    return features.FeatureSpec(tiny_backbone, found, 32, "torch", views=8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "_CHUNK", 16)


def extract(builder, spec, directory):
    return features.extract_features(builder, spec, directory, policy=POLICY, batch_size=8)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    return tmp_path_factory.mktemp("features") / "store"


@pytest.fixture
def first(builder, spec, made_once, tmp_path):
    """What the backbone gives, and its store, to be changed at will, in `tmp_path`."""
    extract(builder, spec, made_once)
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return extract(builder, spec, tmp_path)


def test_features_equal_the_full_models_pooled_output(builder, spec, first):
    store = first
    assert store.features.shape == (52, 8, 8) and store.features.dtype == np.float32
    network = weights.build(spec.backbone, spec.weights, 32)
    images = np.asarray(pipeline.load_images(builder, 32).pixels, np.float64)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for number, turn in ((0, lambda x: x), (1, np.fliplr), (2, np.flipud), (6, None)):
        turned = (
            np.rot90(images, 3, axes=(1, 2))
            if turn is None
            else np.stack([turn(image) for image in images])
        )
        maps = network.predict(((turned / 255 - mean) / deviation).astype(np.float32), verbose=0)
        np.testing.assert_allclose(store.features[:, number], maps.mean(axis=(1, 2)), atol=1e-4)


def test_ten_times_the_images_are_decoded_no_farther_ahead(spec, tmp_path, monkeypatch):
    decoded, passed, alive = 0, 0, []
    plain = pipeline._decoder

    def counting(size, method):
        def count(pixels):
            nonlocal decoded
            decoded += 1
            return pixels

        decoder = plain(size, method)
        decode = decoder.decode_example

        def counted(data):
            pixels = tf.numpy_function(count, [decode(data)], tf.uint8)
            return tf.ensure_shape(pixels, (size, size, 3))

        decoder.decode_example = counted
        return decoder

    def slow(*_, **__):
        def network(pixels):
            nonlocal passed
            # What can be decoded ahead of the network is.
            time.sleep(0.01)
            alive.append(decoded - passed)
            passed += len(pixels)
            return np.zeros((len(pixels), 8), np.float32)

        return network

    monkeypatch.setattr(pipeline, "_decoder", counting)
    monkeypatch.setattr(features, "forward", slow)
    most = []
    for count in (14, 149):
        decoded, passed, alive = 0, 0, []
        make_tree(tmp_path / str(count), "DB_4", train=count, validation=1)
        many = preparing.prepare(
            "pap_db4", "original", tmp_path / str(count), tmp_path / "prepared"
        )
        one = dataclasses.replace(spec, views=1)
        store = features.extract_features(
            many, one, tmp_path / "stores", policy=POLICY, batch_size=4
        )
        assert decoded == len(store.index.ids) == 4 * (count + 1)
        most.append(max(alive))
    # Batches of 4: two each behind the decoder and the filling, one on its way through each, and
    # what the threads of both have in hand.
    assert most[0] > 4 and most[1] <= 4 * (8 + 2 * os.cpu_count()), most
    assert most[1] < 600 / 2, most


@pytest.mark.parametrize("views", [1, 8])
def test_a_head_on_features_learns_what_it_learns_on_images(builder, spec, tmp_path, views):
    """Same seed, batches, order and views: the same weights."""
    spec = dataclasses.replace(spec, views=views)
    recipe = training.Recipe(
        name="head",
        stage=2,
        build=lambda size: models.head(8, 4, units=(6,), seed=3),
        size=32,
        resize="bilinear",
        epochs=3,
        batch_size=8,
        learning_rate=0.05,
        keep="last",
        patience=0,
        augment="stored_views" if views == 8 else "none",
        optimizer="sgd",
    )
    on_images = dataclasses.replace(
        recipe,
        build=lambda size: models.classifier(
            spec.extractor(), models.head(8, 4, units=(6,), seed=3)
        ),
        augment="flips" if views == 8 else "none",
    )
    store = extract(builder, spec, tmp_path)
    images = pipeline.load_images(builder, 32)
    assigned = roles.assign_roles(images.index, "clean", stage=2)
    options = {"seed": 3, "policy": POLICY, "label": None}
    head, first = training.fit(recipe, store, assigned, directory=tmp_path / "a", **options)
    whole, second = training.fit(on_images, images, assigned, directory=tmp_path / "b", **options)
    for layer in head.layers:
        for a, b in zip(layer.weights, whole.get_layer(layer.name).weights, strict=False):
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=a.path)
    assert first["history"][-1]["loss"] == pytest.approx(second["history"][-1]["loss"], abs=1e-4)
    # It did learn, and the frozen part did not.
    assert first["history"][-1]["loss"] != first["history"][0]["loss"]
    frozen = whole.get_layer("tiny_net")
    for a, b in zip(frozen.get_weights(), spec.extractor().get_layer("tiny_net").get_weights(),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(
        training.predict(head, store, assigned.test),
        training.predict(whole, images, assigned.test),
        atol=1e-4,
    )


@pytest.fixture
def forward_passes(monkeypatch):
    """Counts images that go through a backbone."""
    passed, forward = [], features.forward

    def counting(*arguments, **named):
        network = forward(*arguments, **named)
        return lambda x: passed.append(len(x)) or network(x)

    monkeypatch.setattr(features, "forward", counting)
    return passed


@pytest.mark.parametrize("views", [1, 8])
def test_a_store_is_byte_for_byte_what_a_plain_loop_gives(builder, spec, tmp_path, views):
    """Chunk after chunk, batch after batch, all images in memory, Keras's own forward pass."""
    spec = dataclasses.replace(spec, views=views)
    store = extract(builder, spec, tmp_path)
    images, extractor = pipeline.load_images(builder, 32), spec.extractor()
    extractor.compile(jit_compile=False)
    expected = np.empty_like(store.features)
    for start in range(0, len(expected), 16):
        rows, done = np.arange(start, min(start + 16, len(expected))), start
        for pixels, _ in images.batches(rows, 8):
            count = len(pixels)
            for view in range(views):
                turned = augmentation.view(pixels, tf.fill([count], view)) if view else pixels
                turned = tf.pad(turned, [[0, 8 - count], [0, 0], [0, 0], [0, 0]])
                pooled = extractor.predict_on_batch(np.asarray(turned))
                expected[done : done + count, view] = pooled[:count]
            done += count
    assert store.features.tobytes() == expected.tobytes()
    written = [path.read_bytes() for path in sorted(tmp_path.glob("tiny-*/chunk_*.npz"))]
    for number, data in enumerate(written):
        rows, file = slice(16 * number, 16 * number + 16), io.BytesIO()
        np.savez(file, features=expected[rows], ids=store.index.ids[rows])
        assert data == file.getvalue()
    assert len(written) == 4


def test_stored_features_are_not_computed_again(builder, spec, tmp_path, forward_passes):
    first = extract(builder, spec, tmp_path)
    assert sum(forward_passes) == PASSES * 8
    again = extract(builder, spec, tmp_path)
    assert sum(forward_passes) == PASSES * 8
    np.testing.assert_array_equal(first.features, again.features)
    assert again.about["images_per_second"] > 0


@pytest.mark.parametrize(
    "change",
    [{"size": 40}, {"preprocessing": "bgr"}, {"views": 1}, {"resize": "nearest"}, "weights"],
)
def test_a_changed_key_computes_anew(builder, spec, first, tmp_path, forward_passes, change):
    if change == "weights":
        network = models.backbone(spec.backbone).build(32)
        network.save(tmp_path / "other.keras")
        change = {"weights": weights.find(spec.backbone, str(tmp_path / "other.keras"))}
    changed = dataclasses.replace(spec, **change)
    store = extract(builder, changed, tmp_path)
    assert sum(forward_passes) == PASSES * changed.views
    assert store.features.shape[1] == changed.views


def test_another_data_set_is_another_key(spec):
    assert spec.key("a") != spec.key("b")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other", "missing"])
def test_damage_is_found_and_only_that_chunk_is_computed(
    builder, spec, first, tmp_path, forward_passes, capsys, damage
):
    chunk = next(tmp_path.glob("tiny-*/chunk_00001.npz"))
    data = bytearray(chunk.read_bytes())
    if damage == "truncated":
        chunk.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x10
        chunk.write_bytes(data)
    elif damage == "other":
        np.savez(chunk, features=np.zeros((3, 8, 8), np.float32))
    else:
        chunk.unlink()
    again = extract(builder, spec, tmp_path)
    np.testing.assert_allclose(first.features, again.features, atol=1e-5)
    assert sum(forward_passes) == 16 * 8
    assert ("chunk_00001.npz" in capsys.readouterr().out) == (damage != "missing")


def test_extraction_that_was_killed_goes_on(builder, spec, first, tmp_path, monkeypatch):
    forward, passed = features.forward, []

    def killed(*arguments, **named):
        network = forward(*arguments, **named)

        def passing(x):
            if len(passed) == 32:
                raise KeyboardInterrupt
            passed.append(len(x))
            return network(x)

        return passing

    with monkeypatch.context() as patch:
        patch.setattr(features, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(builder, spec, tmp_path / "killed")
        assert len(list((tmp_path / "killed").glob("tiny-*/chunk_*.npz"))) == 2
        # Two chunks of 16 images are done; the rest fits into what is allowed now.
        passed[:] = []
        resumed = extract(builder, spec, tmp_path / "killed")
    assert sum(passed) == (PASSES - 32) * 8
    np.testing.assert_allclose(first.features, resumed.features, atol=1e-5)


def test_features_that_are_not_finite_are_one_line(builder, spec, tmp_path):
    network = models.backbone(spec.backbone).build(32)
    values = network.get_weights()
    values[-1][:] = np.inf
    network.set_weights(values)
    network.save(tmp_path / "nan.keras")
    spec = dataclasses.replace(
        spec, weights=weights.find(spec.backbone, str(tmp_path / "nan.keras"))
    )
    with pytest.raises(
        PapError, match=r"tiny \(nan.keras\): 52 of 52 images have features that are not"
    ) as error:
        extract(builder, spec, tmp_path)
    assert "\n" not in str(error.value)


def test_a_store_without_its_description_is_mended(builder, spec, first, tmp_path):
    next(tmp_path.glob("tiny-*/about.json")).unlink()
    assert extract(builder, spec, tmp_path).about["parameters"] == first.about["parameters"]
    shutil.rmtree(next(tmp_path.glob("tiny-*")))


JAX = """
import sys
from pathlib import Path
from tfds_pap import commands
commands.prepare_tensorflow()
from replication.learning import features, models, weights
from replication.runs import device
from tfds_pap import pipeline, preparing
network, manual_dir, data_dir, place = sys.argv[1:]
models.BACKBONES = {"tiny": models.Backbone("", 32, "torch", 652)}
builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
found = weights.Weights("tiny", Path(network), "0")
weights.build = lambda *_: weights.keras.models.load_model(network)
spec = features.FeatureSpec("tiny", found, 32, "torch", views=8)
policy = device.configure()
features.extract_features(builder, spec, Path(place), policy=policy, batch_size=8)
"""


def test_jax_gives_the_same_features(builder, spec, tmp_path, manual_dir, data_dir):
    pytest.importorskip("jax")
    weights.build(spec.backbone, spec.weights, 32).save(tmp_path / "network.keras")
    paths = [tmp_path / "network.keras", manual_dir, data_dir, tmp_path / "jax"]
    done = command("-c", JAX, *paths, env=os.environ | {"KERAS_BACKEND": "jax"})
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "jax").glob("tiny-*")
    chunks = [np.load(path)["features"] for path in sorted(folder.glob("chunk_*.npz"))]
    found = extract(builder, spec, tmp_path).features
    np.testing.assert_allclose(np.concatenate(chunks), found, atol=1e-4)
