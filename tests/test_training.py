import dataclasses
import functools
import hashlib
import io

import keras
import numpy as np
import pytest
from PIL import Image

from replication.drawing import tensorboard
from replication.learning import training, training_state
from replication.runs.device import DevicePolicy
from tfds_pap import pipeline, preparing, roles
from tfds_pap.errors import PapError


def small_network(size):
    """Has what makes resuming hard: dropout, an optimizer with momenta, BatchNorm."""
    images = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))


RECIPE = training.Recipe(
    name="small",
    stage=2,
    build=small_network,
    size=16,
    resize="bilinear",
    epochs=6,
    batch_size=8,
    learning_rate=1e-2,
    keep="best",
    patience=0,
    augment="flips",
    optimizer="adam",
)
POLICY = DevicePolicy("CPU", False, "float32")


@pytest.fixture(scope="module")
def store(manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    return pipeline.load_images(builder, 16)


def fit(store, directory, recipe=RECIPE, seed=0, callbacks=()):
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    return training.fit(
        recipe,
        store,
        assigned,
        seed=seed,
        policy=POLICY,
        directory=directory,
        label="test",
        callbacks=callbacks,
    )


def digest(model):
    total = hashlib.sha256()
    for weight in model.get_weights():
        total.update(weight.tobytes())
    return total.hexdigest()


class Interrupt(keras.callbacks.Callback):
    """Ends training in the middle of an epoch, as a kill would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.now = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    return {
        keep: fit(store, tmp_path_factory.mktemp(keep), dataclasses.replace(RECIPE, keep=keep))
        for keep in ("best", "last")
    }


def test_same_seed_same_weights(store, undisturbed, tmp_path):
    again, _ = fit(store, tmp_path / "again")
    other, _ = fit(store, tmp_path / "other", seed=1)
    assert digest(again) == digest(undisturbed["best"][0]) != digest(other)


@pytest.mark.parametrize(("keep", "killed_in"), [("best", 0), ("best", 4), ("last", 3)])
def test_resumed_fit_equals_an_undisturbed_one(store, undisturbed, tmp_path, keep, killed_in):
    recipe = dataclasses.replace(RECIPE, keep=keep)
    whole, outcome = undisturbed[keep]
    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path / "killed", recipe, callbacks=(Interrupt(killed_in),))
    resumed, again = fit(store, tmp_path / "killed", recipe)
    assert digest(resumed) == digest(whole)
    assert again["history"] == outcome["history"]
    assert again["best_epoch"] == outcome["best_epoch"]


def test_a_step_is_traced_once(store, tmp_path, monkeypatch):
    """Tracing takes most of a short fit's time; variables made in the first step double it."""
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(
        keras.Model, "train_step", lambda model, data: traced.append(model) or step(model, data)
    )
    fit(store, tmp_path, dataclasses.replace(RECIPE, epochs=1))
    assert len(traced) == 1


def test_best_weights_are_those_of_the_lowest_tune_loss(store, undisturbed):
    model, outcome = undisturbed["best"]
    losses = [epoch["val_loss"] for epoch in outcome["history"]]
    assert outcome["best_epoch"] == int(np.argmin(losses))
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    probabilities = training.predict(model, store, assigned.tune)
    truth = store.index.labels[assigned.tune]
    loss = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-4)


def test_patience_ends_training_and_survives_a_kill(store, tmp_path):
    # A learning rate of zero never improves on the first epoch.
    recipe = dataclasses.replace(RECIPE, epochs=50, patience=3, learning_rate=0.0, build=dense)
    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path, recipe, callbacks=(Interrupt(2),))
    _, outcome = fit(store, tmp_path, recipe)
    assert outcome["epochs_run"] == 4
    _, outcome = fit(store, tmp_path, recipe)
    assert outcome["epochs_run"] == 4, "a finished fit is not trained further"


def dense(size, scale=1 / 255):
    images = keras.Input((size, size, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(scale)(images))
    return keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))


def test_half_a_state_file_is_never_left(store, undisturbed, tmp_path, monkeypatch):
    real = np.savez

    def interrupted(file, **arrays):
        real(file, **{name: array for name, array in list(arrays.items())[:2]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path, callbacks=(Interrupt(2),))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(np, "savez", interrupted)
        fit(store, tmp_path)
    resumed, _ = fit(store, tmp_path)
    assert digest(resumed) == digest(undisturbed["best"][0])


def test_loss_that_is_not_finite_is_one_line(store, tmp_path):
    recipe = dataclasses.replace(RECIPE, build=functools.partial(dense, scale=1e38))
    with pytest.raises(PapError, match=r"^loss became (nan|inf) in epoch \d"):
        fit(store, tmp_path, recipe)


def test_weights_that_are_not_finite_end_a_fit_and_are_not_kept(store, undisturbed, tmp_path):
    """The loss says nothing of them yet; the next fit goes on from the epoch before."""

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.model.history.epoch) == 2 and batch == self.params["steps"] - 1:
                kernel = self.model.layers[2].kernel
                kernel.assign(keras.ops.full(kernel.shape, np.nan))

    with pytest.raises(training_state.Diverged, match=r"conv2d\S* are not finite after epoch"):
        fit(store, tmp_path, callbacks=(Spoil(),))
    model, outcome = fit(store, tmp_path)
    expected, whole = undisturbed["best"]
    assert digest(model) == digest(expected)
    assert outcome["history"] == whole["history"]


def test_remove_state(tmp_path):
    for name in ("state.npz", "best_0003.npz", "model.keras"):
        (tmp_path / name).touch()
    training_state.remove_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_tensorboard_holds_scalars_graph_and_images(store, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    assigned = roles.assign_roles(store.index, "clean", stage=2)
    # Fewer epochs than lie between two looks: the last one is looked at all the same.
    recipe = dataclasses.replace(RECIPE, epochs=2)
    logs = tmp_path / "logs"
    fit(store, tmp_path / "fit", recipe, callbacks=tensorboard.callbacks(logs, store, assigned))

    def events(folder):
        return event_accumulator.EventAccumulator(str(folder)).Reload()

    def tags(folder):
        return events(folder).Tags()

    assert {"epoch_loss", "epoch_accuracy"} <= set(tags(logs / "train")["tensors"])
    assert tags(logs / "pictures")["graph"]
    assert "epoch_loss" in tags(logs / "validation")["tensors"]
    assert "confusion matrix (rows true)" in tags(logs / "pictures")["tensors"]
    last = events(logs / "pictures").Tensors("misclassified cells")[-1]
    assert last.step == 1
    _, _, png, *_ = last.tensor_proto.string_val
    picture = np.asarray(Image.open(io.BytesIO(png)))
    # Below the cell stands in black on white what it is, and what it was called.
    below = picture[-42:].mean(axis=-1)
    assert np.median(below) == 255 and (below < 100).sum() > 100
    assert picture[:-42].std() > 5
