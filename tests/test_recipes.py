import dataclasses

import keras
import numpy as np
import pytest

from replication.learning import features, heads, knobs, models, recipes, training_state, weights
from replication.runs.device import DevicePolicy
from tfds_pap import files, pipeline, preparing, roles
from tfds_pap.errors import PapError

POLICY = DevicePolicy("CPU", False, "float32")


@pytest.fixture(scope="module")
def builder(manual_dir, data_dir):
    return preparing.prepare("pap_db4", "original", manual_dir, data_dir)


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_the_cnn_is_planned_unless_asked_otherwise(protocol):
    assert recipes.plan(protocol, 2, phantoms=False) == recipes.RECIPES[protocol, 2]
    shorter = recipes.plan(protocol, 1, phantoms=True, batch_size=7, augment="none")
    assert (shorter.epochs, shorter.batch_size, shorter.augment) == (30, 7, "none")


def test_p3_is_what_the_authors_ran():
    paper = recipes.plan("paper", 2, phantoms=False, stage2="resnet50", weights_spec="none")
    assert (paper.size, paper.batch_size, paper.epochs) == (224, 32, 100)
    assert (paper.optimizer, paper.learning_rate, paper.keep) == ("adam", 1e-2, "last")
    assert paper.augment == "flips_blur_rotation" and paper.test_within_train
    assert paper.published == "P3.validation_accuracy" and paper.name.endswith("untrained")
    model = paper.build(paper.size)
    dense = model.layers[-1]
    assert model.output_shape == (None, 4)
    assert [id(w) for w in model.trainable_weights] == [id(w) for w in dense.trainable_weights]
    assert model.count_params() == models.BACKBONES["resnet50"].parameters + 2048 * 4 + 4
    # torchvision's normalisation, as P3 fed it.
    scale = model.get_layer("scale")
    np.testing.assert_allclose(scale.scale, 1 / (255 * np.array([0.229, 0.224, 0.225])))


def test_the_flag_chooses_p1s_later_variant():
    paper = recipes.plan("paper", 1, phantoms=False, stage1="50")
    assert (paper.size, paper.epochs, paper.keep) == (50, 56, "last")
    model = paper.build(paper.size)
    names = [type(layer).__name__ for layer in model.layers]
    assert model.input_shape == (None, 50, 50, 3)
    assert names.index("Dropout") > names.index("Dense")
    clean = recipes.plan("clean", 1, phantoms=False, stage1="50")
    assert (clean.size, clean.epochs, clean.keep) == (50, 100, "best")
    assert recipes.plan("paper", 1, phantoms=False).size == 20
    assert recipes.plan("paper", 2, phantoms=False, stage1="50").size == 250


def test_clean_p3_is_a_head_on_stored_views():
    clean = recipes.plan("clean", 2, phantoms=False, stage2="resnet50", weights_spec="none")
    assert clean.features.views == 8 and clean.features.preprocessing == "caffe"
    assert clean.augment == "stored_views" and clean.keep == "best" and not clean.test_within_train
    flips = recipes.plan(
        "clean", 2, phantoms=False, stage2="resnet50", weights_spec="none", augment="flips"
    )
    assert flips.augment == "stored_views"


def test_p3_without_weights_is_one_line(tmp_path):
    with pytest.raises(PapError, match=r"no file .*resnet50_weights"):
        recipes.plan("paper", 2, phantoms=False, stage2="resnet50", weights_spec=str(tmp_path))


def test_p3_is_scored_on_a_random_fifth_of_the_train_folder(builder):
    index = pipeline.read_index(builder)
    within = roles.assign_roles(index, "paper", stage=2, test_within_train=True)
    usual = roles.assign_roles(index, "paper", stage=2)
    np.testing.assert_array_equal(within.test, usual.tune)
    np.testing.assert_array_equal(within.train, usual.train)
    assert len(within.tune) == 0 and set(index.splits[within.test]) == {"train"}


def test_monitoring_accuracy_keeps_the_epoch_of_the_highest(tmp_path):
    state = training_state.TrainingState(tmp_path, patience=2, monitor="val_accuracy")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    state.set_model(model)
    for epoch, accuracy in enumerate([0.5, 0.7, 0.6, 0.7]):
        model.stop_training = False
        # The loss points elsewhere.
        logs = {"loss": 1.0, "val_loss": 1 - 0.1 * epoch, "val_accuracy": accuracy}
        state.on_epoch_end(epoch, logs)
    assert state.best_epoch == 1 and model.stop_training


@pytest.mark.parametrize(
    ("protocol", "keep", "monitor", "augment"),
    [("clean", "best", "val_loss", "stored_views"), ("paper", "last", "val_accuracy", "none")],
)
def test_a_head_is_trained_as_the_protocol_says(
    tiny_backbone, builder, tmp_path, protocol, keep, monitor, augment
):
    spec = features.FeatureSpec(
        tiny_backbone, weights.find(tiny_backbone, "none"), 32, "torch", views=8
    )
    store = features.extract_features(builder, spec, tmp_path / "features", policy=POLICY)
    recipe = knobs.HeadRecipe(epochs=4, hidden_units=(5,))
    planned = heads.training_recipe(recipe, store, protocol, 0, tuned=True)
    assert (planned.keep, planned.monitor, planned.augment) == (keep, monitor, augment)
    assert heads.training_recipe(recipe, store, protocol, 0, tuned=False).keep == "last"
    cut = heads.cut(store.index, heads.PUBLISHED, protocol=protocol, count=0, seed=0)
    options = {"protocol": protocol, "seed": 0, "policy": POLICY}
    first = heads.train_head(store, recipe, cut, directory=tmp_path / "a", **options)
    again = heads.train_head(store, recipe, cut, directory=tmp_path / "b", **options)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    other = heads.train_head(
        store,
        dataclasses.replace(recipe, hidden_units=()),
        cut,
        directory=tmp_path / "c",
        **options,
    )
    assert not np.array_equal(first.probabilities, other.probabilities)
    assert set(first.splits) == {"tune", "test"}
    head = keras.saving.load_model(tmp_path / "a" / "head.keras")
    test = cut[0].test
    np.testing.assert_allclose(
        head.predict(store.features[test, 0], verbose=0),
        first.select("test").probabilities,
        atol=1e-6,
    )
    assert not list((tmp_path / "a").glob("fold_*"))
    optimizer = files.read_json(tmp_path / "a" / "fit.json")["optimizer_config"]
    assert (optimizer["name"], optimizer["learning_rate"]) == ("sgd", 0.01)


def test_folds_pool_what_each_head_has_not_seen(tiny_backbone, builder, tmp_path):
    spec = features.FeatureSpec(tiny_backbone, weights.find(tiny_backbone, "none"), 32, "torch")
    store = features.extract_features(builder, spec, tmp_path / "features", policy=POLICY)
    cut = heads.cut(store.index, "group", protocol="clean", count=3, seed=0)
    pooled = heads.train_head(
        store,
        knobs.HeadRecipe(epochs=2),
        cut,
        protocol="clean",
        seed=0,
        policy=POLICY,
        directory=tmp_path / "folds",
    )
    assert sorted(pooled.ids) == sorted(store.index.ids) and set(pooled.splits) == {"test"}
    alone = heads.train_head(
        store,
        knobs.HeadRecipe(epochs=2),
        cut[1:2],
        protocol="clean",
        seed=0,
        policy=POLICY,
        directory=tmp_path / "alone",
    )
    rows = [pooled.ids.index(image) for image in alone.ids]
    np.testing.assert_allclose(pooled.probabilities[rows], alone.probabilities, atol=1e-6)
