"""One point of a search: its file, its recipe, its optimizer, and the blocks that it trains."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from finetune import blocks, recipes, tuning
from finetune.search import scoring
from replication.learning import features, models, optimizers, training, training_state, weights
from replication.runs import device
from tfds_pap import pipeline, preparing, roles
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

SPEC = dict(size=32, preprocessing="torch")

BETHESDA = Classes.known(("NILM", "LSIL", "HSIL", "SCC"))


@pytest.fixture(scope="module")
def builder(manual_dir, data_dir):
    return preparing.prepare("pap_db4", "original", manual_dir, data_dir)


def spec(backbone, views=1):
    return features.FeatureSpec(backbone, weights.find(backbone, "none"), views=views, **SPEC)


def policy():
    return device.configure()


def test_the_shipped_file_is_p6():
    found = tuning.Tuning.read(tuning.P6)
    assert (found.backbone, found.size, found.hidden_units) == ("resnet152", 250, (64,))
    assert (found.dropout, found.optimizer, found.learning_rate) == (0.2, "sgd", 0.01)
    assert (found.batch_size, found.epochs, found.patience) == (16, 50, 20)
    head = models.head(2048, 4, units=found.hidden_units, dropout=found.dropout)
    trainable = sum(math.prod(weight.shape) for weight in head.trainable_weights)
    # P6: 58,510,532 parameters, of which 58,370,944 are ResNet152's; 135,492 trainable.
    assert head.count_params() == 58_510_532 - 58_370_944
    assert trainable == 135_492


def test_a_file_reads_back(tmp_path):
    one = tuning.Tuning(hidden_units=(32, 8), optimizer="adamw", weight_decay=0.1, views=8)
    one.write(tmp_path / "a.json", _trial="0007")
    assert json.loads((tmp_path / "a.json").read_text())["_trial"] == "0007"
    assert tuning.Tuning.read(tmp_path / "a.json") == one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object"),
        ("{", "expected JSON"),
        ('{"dropuot": 0.2}', "dropuot: expected one of backbone, size"),
        ('{"dropout": 1}', "dropout=1: expected a number from 0, below 1"),
        ('{"dropout": "a"}', "dropout='a': expected a number"),
        ('{"dropout": true}', "dropout=True: expected a number"),
        ('{"hidden_units": [64, 0]}', "hidden_units=(64, 0): expected a list"),
        ('{"hidden_units": 64}', "hidden_units=64: expected a list"),
        ('{"optimizer": "sdg"}', "optimizer='sdg': expected one of sgd, adam, adamw"),
        ('{"epochs": 3, "warmup_epochs": 3}', "warmup_epochs=3: expected fewer than epochs=3"),
        ('{"views": 4}', "views=4: expected 1 or 8"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PapError, match=r"a\.json: ") as raised:
        tuning.Tuning.read(tmp_path / "a.json")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_blocks_of_the_papers_networks():
    assert len(blocks.blocks(models.backbone("vgg16").build(32))) == 5
    network = models.backbone("resnet50").build(32)
    found = blocks.blocks(network)
    assert found[-1][0].name == "conv5_block3_1_conv"
    # 3 + 4 + 6 + 3 residual blocks; the stem goes with the first of them.
    assert len(found) == 16 and found[0][1].name == "conv1_pad"
    assert [layer for block in found for layer in block] == network.layers


def test_unfreezing_leaves_batch_normalisation_alone(tiny_backbone):
    model = models.classifier(spec(tiny_backbone).extractor(), models.head(8, 4))
    assert optimizers.backbone_variables(model) == []
    blocks.unfreeze(model, 1)
    assert [v.path.split("/")[-2] for v in optimizers.backbone_variables(model)] == ["top", "top"]
    blocks.unfreeze(model, 2)
    assert {v.path.split("/")[-2] for v in optimizers.backbone_variables(model)} == {"stem", "top"}
    with pytest.raises(PapError, match="tiny_net has 2 blocks"):
        blocks.unfreeze(model, 3)


def one_step(model, optimizer):
    """How far each trainable variable moves in one step with a gradient of one."""
    before = [np.array(variable) for variable in model.trainable_variables]
    ones = [keras.ops.ones_like(variable) for variable in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)
    after = [np.array(variable) for variable in model.trainable_variables]
    return [np.abs(b - a).max() for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_backbone_takes_its_own_learning_rate(tiny_backbone, name):
    model = models.classifier(spec(tiny_backbone).extractor(), models.head(8, 4))
    blocks.unfreeze(model, 1)
    asked = tuning.Tuning(
        optimizer=name, learning_rate=1e-2, backbone_learning_rate=1e-4, unfrozen_blocks=1
    )
    backbone = optimizers.backbone_variables(model)
    optimizer = optimizers.build(asked, model, 10)
    slow = {id(variable) for variable in backbone}
    moved = one_step(model, optimizer)
    for variable, distance in zip(model.trainable_variables, moved, strict=True):
        # The first step of Adam has the size of the learning rate as well.
        expected = 1e-4 if id(variable) in slow else 1e-2
        assert distance == pytest.approx(expected, rel=1e-2), variable.path
    described = json.loads(json.dumps(optimizers.described(optimizer)))
    assert (described["name"], described["learning_rate"]) == (name, 0.01)
    assert described["backbone_learning_rate_factor"] == pytest.approx(0.01)


def test_cosine_rises_falls_and_ends_at_zero():
    asked = tuning.Tuning(learning_rate=0.1, schedule="cosine", warmup_epochs=2, epochs=10)
    rate = optimizers.learning_rate(asked, 5)
    found = [float(rate(step)) for step in range(51)]
    assert found[:11] == pytest.approx([0.01 * step for step in range(11)], abs=1e-7)
    expected = [0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(41)]
    assert found[10:] == pytest.approx(expected, abs=1e-7)
    described = optimizers.described(optimizers.build(asked, models.head(8, 4), 5))
    assert described["learning_rate"]["class_name"] == "CosineDecay"
    assert described["learning_rate"]["config"]["warmup_steps"] == 10
    flat = dataclasses.replace(asked, warmup_epochs=0)
    assert float(optimizers.learning_rate(flat, 5)(0)) == pytest.approx(0.1)


def fit(store, recipe, directory, **options):
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    return training.fit(
        recipe,
        store,
        assigned,
        seed=3,
        policy=policy(),
        directory=directory,
        label=None,
        validate=scoring.validator(store, assigned.tune),
        **options,
    )


def recipe(asked, one_spec, **options):
    options = {"keep": "last", "monitor": "val_loss", "name": "test"} | options
    return recipes.recipe(asked, one_spec, classes=4, seed=3, **options)


def test_blocks_train_and_the_rest_stays(tiny_backbone, builder, tmp_path):
    one_spec = spec(tiny_backbone)
    asked = tuning.Tuning(
        epochs=2, batch_size=8, unfrozen_blocks=1, backbone_learning_rate=0.1, learning_rate=0.1
    )
    images = pipeline.load_images(builder, 32)
    model, _ = fit(images, recipe(asked, one_spec), tmp_path)
    # The fit builds its own copy; equal seeds give equal weights.
    device.set_seed(3)
    fresh = recipe(asked, one_spec).build(32)
    network = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    untouched = next(layer for layer in fresh.layers if isinstance(layer, keras.Model))
    for name in ("stem", "stem_normalization"):
        for found, first in zip(
            network.get_layer(name).weights, untouched.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(found, first)
    moved = np.abs(network.get_layer("top").kernel - untouched.get_layer("top").kernel).max()
    assert moved > 1e-4


def test_a_longer_fit_goes_on_where_a_shorter_one_ended(tiny_backbone, builder, tmp_path):
    """What Hyperband calls inheriting: equal to a fit that was never interrupted."""
    one_spec = spec(tiny_backbone)
    store = features.extract_features(builder, one_spec, tmp_path / "features", policy=policy())
    asked = tuning.Tuning(
        epochs=9, batch_size=8, optimizer="adam", schedule="cosine", warmup_epochs=1
    )
    whole, outcome = fit(store, recipe(asked, one_spec), tmp_path / "whole")
    fit(store, recipe(asked, one_spec, epochs=4), tmp_path / "short", seconds_between_writes=99)
    training_state.copy_state(tmp_path / "short", tmp_path / "long")
    longer, later = fit(store, recipe(asked, one_spec), tmp_path / "long")
    assert later["history"] == outcome["history"]
    for one, other in zip(whole.variables, longer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_smoothing_and_class_weights_are_keras_own(tiny_backbone, builder, tmp_path):
    one_spec = spec(tiny_backbone)
    store = features.extract_features(builder, one_spec, tmp_path / "features", policy=policy())
    asked = tuning.Tuning(
        epochs=1, batch_size=64, dropout=0.0, label_smoothing=0.2, class_weights="balanced"
    )
    _, outcome = fit(store, recipe(asked, one_spec), tmp_path / "a")
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    labels = store.index.labels[assigned.train]
    device.set_seed(3)
    head = recipe(asked, one_spec).build(8)
    # In training BatchNorm sees the one batch that holds all images.
    said = np.asarray(head(store.features[assigned.train, 0], training=True), np.float64)
    smooth = np.eye(4)[labels] * 0.8 + 0.05
    losses = -(smooth * np.log(said)).sum(axis=1)
    counts = np.bincount(labels, minlength=4)
    weighted = losses * (len(labels) / (4 * counts))[labels]
    assert outcome["history"][0]["loss"] == pytest.approx(weighted.mean(), rel=1e-4)


def test_the_state_of_a_frozen_backbone_is_not_written(tiny_backbone, builder, tmp_path):
    asked = tuning.Tuning(epochs=1, batch_size=8, unfrozen_blocks=1)
    images = pipeline.load_images(builder, 32)
    model, _ = fit(images, recipe(asked, spec(tiny_backbone)), tmp_path)
    with np.load(tmp_path / "state.npz") as state:
        stored = sum(state[name].size for name in state.files if name != "meta")
    network = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    frozen = sum(
        math.prod(weight.shape)
        for name in ("stem", "stem_normalization")
        for weight in network.get_layer(name).weights
    )
    everything = sum(
        math.prod(variable.shape) for variable in (*model.variables, *model.optimizer.variables)
    )
    assert stored == everything - frozen


def test_the_paper_protocol_scores_what_it_trained_on(builder):
    index = pipeline.read_index(builder)
    paper = scoring.assign_roles(index, "paper")
    assert set(index.splits[paper.train]) == {"train"} and len(paper.train) == 40
    assert set(paper.tune) < set(paper.train) and len(paper.tune) == 12
    # "The first 800 rows of the concatenated array", in the order in which P2 shuffles.
    cut = roles.assign_roles(index, "paper", stage=2)
    concatenated = np.concatenate([cut.train, cut.tune])
    np.testing.assert_array_equal(paper.tune, concatenated[:12])
    assert set(index.splits[paper.test]) == {"validation"}
    clean = scoring.assign_roles(index, "clean")
    assert not set(clean.tune) & set(clean.train)
    assert not set(index.groups[clean.tune]) & set(index.groups[clean.train])


# float32 probabilities miss a sum of one by a rounding.
@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one:UserWarning:sklearn")
def test_figures_equal_scikit_learns():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    said = rng.dirichlet(np.ones(4), 200).astype(np.float32)
    found = scoring.figures(labels, said, BETHESDA, "val_")
    named = said.argmax(axis=1)
    assert found["val_accuracy"] == pytest.approx(metrics.accuracy_score(labels, named))
    assert found["val_macro_f1"] == pytest.approx(metrics.f1_score(labels, named, average="macro"))
    assert found["val_loss"] == pytest.approx(
        metrics.log_loss(labels, said.astype(float) / said.sum(axis=1, keepdims=True)), rel=1e-5
    )
    assert found["val_hsil_plus_sensitivity"] == pytest.approx(
        metrics.recall_score(labels >= 2, named >= 2)
    )
    assert found["val_hsil_plus_specificity"] == pytest.approx(
        metrics.recall_score(labels < 2, named < 2)
    )
    assert set(found) == {*scoring.OBJECTIVES, "val_hsil_plus_specificity"}
    said[3] = np.nan
    with pytest.raises(training_state.Diverged):
        scoring.figures(labels, said, BETHESDA, "val_")


def test_an_objective_without_images_is_one_line(builder):
    index = pipeline.read_index(builder)
    nilm = np.flatnonzero(index.labels == 0)
    with pytest.raises(PapError, match="no image of HSIL or SCC"):
        scoring.check_objective("val_hsil_plus_sensitivity", index, nilm)
    scoring.check_objective("val_macro_f1", index, nilm)
