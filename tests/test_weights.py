import hashlib
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from replication.learning import models, weights
from tfds_pap.errors import PapError


def save_official(network, path):
    """Writes the HDF5 layout in which Keras publishes its weights."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def randomised(network, seed=1):
    random = np.random.default_rng(seed)
    network.set_weights([random.uniform(0.5, 1, w.shape) for w in network.get_weights()])
    return network


def assert_same_weights(first, second):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_every_kind_of_file_is_loaded_whole(tiny_backbone, tmp_path, ending):
    network = randomised(models.backbone(tiny_backbone).build(32))
    path = tmp_path / f"mine{ending}"
    if ending == ".h5":
        save_official(network, path)
    else:
        network.save(path) if ending == ".keras" else network.save_weights(path)
    found = weights.find(tiny_backbone, str(path))
    assert found.label == path.name
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same_weights(weights.build(tiny_backbone, found, 48), network)


def test_a_directory_is_searched_by_published_name(tiny_backbone, tmp_path):
    save_official(randomised(models.backbone(tiny_backbone).build(32)), tmp_path / "other.h5")
    with pytest.raises(PapError, match=r"no file .*tiny_net_notop\.h5 for tiny"):
        weights.find(tiny_backbone, str(tmp_path))
    (tmp_path / "other.h5").rename(tmp_path / "tiny_net_notop.h5")
    assert weights.available(tiny_backbone, str(tmp_path))
    assert weights.find(tiny_backbone, str(tmp_path)).path.name == "tiny_net_notop.h5"


def test_layer_names_in_several_attributes_are_read(tiny_backbone, tmp_path):
    """Keras cuts attributes above 64 kB into numbered ones, as for ResNet152."""
    path = tmp_path / "cut.h5"
    save_official(randomised(models.backbone(tiny_backbone).build(32)), path)
    with h5py.File(path, "a") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
    weights.build(tiny_backbone, weights.find(tiny_backbone, str(path)), 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("wider", r"first at layer 'top', which has weights .*\(3, 3, 6, 8\).*\(3, 3, 6, 9\)"),
        ("longer", "4 layers with weights, expected 3; first at layer .*more.*only the file has"),
        ("shorter", "2 layers with weights, expected 3; first at layer 'top', which only the netw"),
    ],
)
def test_a_file_that_does_not_fit_names_the_first_layer(tiny_backbone, tmp_path, change, message):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(6, 3, name="stem")(images)
    x = keras.layers.BatchNormalization()(x)
    if change != "shorter":
        x = keras.layers.Conv2D(9 if change == "wider" else 8, 3, name="top")(x)
    if change == "longer":
        x = keras.layers.Conv2D(8, 1, name="more")(x)
    save_official(keras.Model(images, x), tmp_path / "odd.h5")
    found = weights.find(tiny_backbone, str(tmp_path / "odd.h5"))
    with pytest.raises(PapError, match=message) as error:
        weights.build(tiny_backbone, found, 32)
    assert "odd.h5 does not fit tiny" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_a_broken_file_is_one_line(tiny_backbone, tmp_path, ending):
    path = tmp_path / f"broken{ending}"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(PapError, match="broken") as error:
        weights.build(tiny_backbone, weights.find(tiny_backbone, str(path)), 32)
    assert "\n" not in str(error.value)


def test_missing_imagenet_weights_name_the_file_the_place_and_two_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with (
        mock.patch("keras.src.utils.file_utils.get_file", side_effect=Exception("no route\nx")),
        pytest.raises(PapError) as error,
    ):
        weights.find("resnet50", "imagenet")
    said = str(error.value)
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in said
    assert str(tmp_path) in said and "no route" in said and "\n" not in said
    assert "--weights=PATH" in said and "--weights=none" in said


def test_cached_imagenet_weights_are_used(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    network = randomised(models.backbone("mobilenetv2_035").build(96))
    path = tmp_path / "models" / models.backbone("mobilenetv2_035").weights_file
    path.parent.mkdir()
    save_official(network, path)
    found = weights.find("mobilenetv2_035", "imagenet")
    assert found.label == "imagenet"
    assert_same_weights(weights.build("mobilenetv2_035", found, 96), network)


def test_untrained_weights_are_the_same_each_time_and_labelled(tiny_backbone):
    found = weights.find(tiny_backbone, "none")
    assert found.label == "untrained" and found.path is None
    first = weights.build(tiny_backbone, found, 32)
    keras.utils.set_random_seed(99)
    assert_same_weights(first, weights.build(tiny_backbone, found, 32))


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory):
    """The network without weights, Keras's own with a file of ImageNet's layout, and that file."""
    shape = {"include_top": False, "input_shape": (32, 32, 3)}
    network = keras.applications.EfficientNetB0(weights=None, **shape)
    layer = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    layer.adapt_mean.assign([0.485, 0.456, 0.406])
    layer.adapt_variance.assign([0.229, 0.224, 0.225])
    layer.finalize_state()
    path = tmp_path_factory.mktemp("weights") / "efficientnetb0_notop.h5"
    save_official(network, path)
    with mock.patch("keras.src.utils.file_utils.get_file", return_value=str(path)):
        theirs = keras.applications.EfficientNetB0(weights="imagenet", **shape)
    return network, theirs, path


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_efficientnet_gets_the_factor_that_keras_gives_imagenet_weights(
    efficientnet, tmp_path, ending
):
    """Keras adds a layer for weights="imagenet" alone; the same file loaded later would miss it."""
    network, theirs, path = efficientnet
    if ending == ".keras":
        path = tmp_path / "efficientnetb0.keras"
        theirs.save(path)
    ours = weights.build("efficientnetb0", weights.find("efficientnetb0", str(path)), 32)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    wanted = np.asarray(theirs(images))
    np.testing.assert_allclose(ours(images), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted - network(images)).max() > 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2_035"])
def test_published_mobilenet_files_fit(shared_data, name):
    found = weights.find(name, str(shared_data / "weights"))
    network = weights.build(name, found, 96)
    assert network.count_params() == models.BACKBONES[name].parameters
