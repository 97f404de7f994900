import cv2
import keras
import numpy as np
import pytest
from conftest import save_image

from replication.learning import models, recipes
from tfds_pap import pipeline
from tfds_pap.errors import PapError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 250, 250, 3), np.uint8)


def test_stage1_has_the_papers_parameters():
    assert models.stage1_cnn().count_params() == 7_060
    kinds = [type(layer).__name__ for layer in models.stage1_cnn().layers[2:]]
    assert kinds == ["Conv2D", "MaxPooling2D", "Dropout", "Flatten", "Dense", "Dense"]


def test_stage1_variant_moves_the_dropout():
    kinds = [
        type(layer).__name__ for layer in models.stage1_cnn(50, dropout_after_dense=True).layers
    ]
    assert kinds[2:] == ["Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dropout", "Dense"]


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_stage2_has_the_papers_parameters(protocol):
    model = models.stage2_cnn(protocol)
    assert model.count_params() == 131_108
    filters = [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert filters == [40, 32, 32, 64, 64, 64]
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.3] * 6


def test_small_preset_keeps_the_parameters():
    preset = recipes.PHANTOM_PRESET["clean", 2]
    assert models.stage2_cnn("paper", preset["size"]).count_params() == 131_108
    with pytest.raises(ValueError, match="Computed output size"):
        models.stage2_cnn("paper", preset["size"] - 1)


def first_features(model, images):
    """What the first convolution says, computed by the layers up to it."""
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    part = keras.Model(model.inputs, first.output)
    return np.asarray(part(images)), first


def correlate(pixels, first):
    """The same convolution in plain NumPy at one place: rows and columns 100 to 102."""
    kernel, bias = (np.asarray(w, np.float64) for w in first.get_weights())
    patch = pixels[100:103, 100:103].astype(np.float64)
    return np.maximum(np.einsum("hwc,hwcf->f", patch, kernel) + bias, 0)


def test_paper_protocol_feeds_bgr_unscaled(images):
    found, first = first_features(models.stage2_cnn("paper"), images)
    expected = correlate(images[0][:, :, ::-1], first)
    np.testing.assert_allclose(found[0, 100, 100], expected, rtol=1e-4, atol=1e-3)


def fed(model, recipe, path):
    """What the network's first layer makes of a file's pixels."""
    pixels = pipeline.decode_and_resize(path.read_bytes(), recipe.size, recipe.resize)
    preprocessing = keras.Model(model.inputs, model.operations[1].output)
    return preprocessing.predict(np.asarray(pixels)[None], verbose=0)[0]


@pytest.mark.parametrize("name", ["cell.jpg", "cell.png"])
def test_paper_stage2_sees_what_the_notebooks_read_with_cv2(name, tmp_path):
    save_image(tmp_path / name, seed=1, size=250)
    recipe = recipes.RECIPES["paper", 2]
    found = fed(recipe.build(recipe.size), recipe, tmp_path / name)
    notebook = cv2.resize(cv2.imread(str(tmp_path / name)), (250, 250))
    np.testing.assert_array_equal(found, notebook.astype(np.float32))


def test_names_do_not_count_what_was_built_before(tmp_path):
    models.stage2_cnn("paper")
    model = models.stage2_cnn("paper")
    assert [each.name for each in model.operations[:2]] == ["image", "rgb_to_bgr"]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert [each.name for each in loaded.operations[:2]] == ["image", "rgb_to_bgr"]
    # A file of before, whose name was Keras's own.
    model.operations[1].name = "flip_7"
    model.save(tmp_path / "old.keras")
    old = keras.models.load_model(tmp_path / "old.keras", safe_mode=True)
    assert old.operations[1].name == "flip_7"
    pixels = np.random.default_rng(0).integers(0, 256, (1, 250, 250, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(old(pixels)), np.asarray(loaded(pixels)))
    network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1, name="conv")])
    assert models.feature_extractor(network, 4, "caffe").operations[1].name == "rgb_to_bgr"


def test_a_backbone_is_the_same_whatever_was_built_before(tmp_path):
    # Three of its layers have no name of their own.
    first, second = (models.backbone("efficientnetb0").build(32) for _ in range(2))
    assert {"input_layer", "rescaling", "normalization"} <= {one.name for one in second.layers}
    assert first.get_config() == second.get_config()
    second.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [one.name for one in again.layers] == [one.name for one in second.layers]
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(again(pixels), second(pixels))


def test_paper_stage2_resizes_as_cv2_within_rounding(tmp_path):
    save_image(tmp_path / "cell.jpg", seed=1, size=310)
    recipe = recipes.RECIPES["paper", 2]
    found = fed(recipe.build(recipe.size), recipe, tmp_path / "cell.jpg")
    notebook = cv2.resize(cv2.imread(str(tmp_path / "cell.jpg")), (250, 250))
    assert np.abs(found - notebook).max() <= 1


def test_paper_stage1_sees_nearest_pixels_over_255(tmp_path):
    save_image(tmp_path / "roi.jpg", seed=1, size=150)
    recipe = recipes.RECIPES["paper", 1]
    found = fed(recipe.build(recipe.size), recipe, tmp_path / "roi.jpg")
    rgb = cv2.cvtColor(cv2.imread(str(tmp_path / "roi.jpg")), cv2.COLOR_BGR2RGB)
    roi = cv2.resize(rgb, (20, 20), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_allclose(found, roi / 255, rtol=1e-6)


def test_clean_protocol_feeds_rgb_scaled(images):
    found, first = first_features(models.stage2_cnn("clean"), images)
    expected = correlate(images[0] / 127.5 - 1, first)
    np.testing.assert_allclose(found[0, 100, 100], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("protocol", "stage"), recipes.RECIPES)
def test_saved_model_loads_safely_and_says_the_same(protocol, stage, images, tmp_path):
    recipe = recipes.RECIPES[protocol, stage]
    model = recipe.build(recipe.size)
    images = images[:, : recipe.size, : recipe.size]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    before, after = model.predict(images, verbose=0), loaded.predict(images, verbose=0)
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(before.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", models.BACKBONES)
def test_the_table_says_what_preprocess_input_does(name):
    """The mode in the table is the one found by asking Keras's own function."""
    entry = models.BACKBONES[name]
    assert models._other_backbone(entry.constructor).preprocessing == entry.preprocessing


@pytest.mark.parametrize(
    "name", ["vgg16", "efficientnetb0", "mobilenetv2", "mobilenetv2_035", "efficientnetv2b0"]
)
def test_the_table_says_how_large_a_backbone_is(name):
    entry = models.BACKBONES[name]
    assert entry.build(64).count_params() == entry.parameters


def test_any_name_of_keras_applications_will_do():
    assert models.backbone("Xception") == models.Backbone("Xception", 224, "tf")
    assert models.backbone("mobilenetv3small").preprocessing == "included"
    assert models.backbone("ResNet152") is models.BACKBONES["resnet152"]


def test_an_unknown_backbone_offers_the_nearest():
    with pytest.raises(PapError, match=r"'resnt152'.*did you mean resnet152") as error:
        models.backbone("resnt152")
    assert "\n" not in str(error.value)


def test_p6_has_the_papers_parameters():
    """ResNet152 and the head of P6: 58,510,532 parameters, 135,492 of them trainable."""
    extractor = models.feature_extractor(models.backbone("resnet152").build(250), 250, "bgr")
    model = models.classifier(extractor, models.head(2048, 4))
    assert model.count_params() == 58_510_532
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == 135_492
    assert model.input_shape == (None, 250, 250, 3) and model.output_shape == (None, 4)


@pytest.mark.parametrize("mode", ["tf", "caffe", "torch"])
def test_preprocessing_in_the_model_equals_keras_own(tiny_backbone, mode):
    network = models.backbone(tiny_backbone).build(32)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    wanted = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
    ours = models.feature_extractor(network, 32, mode)(pixels)
    expected = np.asarray(network(wanted)).mean(axis=(1, 2))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)


def test_paper_protocol_feeds_a_backbone_bgr_unscaled(tiny_backbone):
    network = models.backbone(tiny_backbone).build(32)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    ours = models.feature_extractor(network, 32, "bgr")(pixels)
    wanted = np.asarray(network(pixels[..., ::-1])).mean(axis=(1, 2))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_a_saved_classifier_keeps_preprocessing_and_loads_safely(tiny_backbone, tmp_path):
    extractor = models.feature_extractor(models.backbone(tiny_backbone).build(32), 32, "caffe")
    model = models.classifier(extractor, models.head(8, 4, units=(), seed=1))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(pixels), model(pixels), atol=1e-6)


def test_the_head_is_the_same_whatever_was_built_before():
    first = models.head(16, 4, seed=5).get_weights()
    keras.layers.Dense(3).build((1, 7))
    for a, b in zip(first, models.head(16, 4, seed=5).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[4], models.head(16, 4, seed=6).get_weights()[4])


def test_gflops_equal_tensorflows_own_count():
    """The profiler counts every operation of the graph; convolutions and dense layers are most."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.profiler import model_analyzer, option_builder

    model = models.feature_extractor(models.backbone("mobilenetv2_035").build(96), 96, "tf")
    concrete = tf.function(model).get_concrete_function(tf.TensorSpec((1, 96, 96, 3)))
    frozen = convert_to_constants.convert_variables_to_constants_v2(concrete)
    options = option_builder.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    total = model_analyzer.profile(frozen.graph, options=options).total_float_ops / 1e9
    assert models.gflops(model) == pytest.approx(total, rel=0.1)
    # He et al. 2016 count 3.8e9 multiply-adds for ResNet50 with its classifier (4.1e6).
    resnet50 = models.feature_extractor(models.backbone("resnet50").build(224), 224, "caffe")
    assert models.gflops(resnet50) == pytest.approx(2 * 3.86, rel=0.01)
