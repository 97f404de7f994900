"""What `auto` decides by the work: XLA, steps of one call, and what stays on the device."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from test_training import POLICY, RECIPE, Interrupt, digest

from replication.learning import features, models, on_device, recipes, training
from replication.runs import automatic, device
from replication.runs.device import DevicePolicy
from replication.runs.sharing import Sharing
from tfds_pap import pipeline, preparing, roles

#: As `device.configure` makes it on a GPU, but for the place where it computes.
GPU = DevicePolicy(
    "a GPU",
    True,
    "float32",
    compiled_from=automatic.COMPILED_FROM,
    accelerators=1,
)


@pytest.fixture(scope="module")
def store(manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    return pipeline.load_images(builder, 16)


def stored_features(store, views=8):
    values = np.random.default_rng(0).normal(size=(len(store.index.ids), views, 6))
    return features.FeatureStore(store.index, values.astype(np.float32), {})


def fit(store, directory, policy, recipe=RECIPE, callbacks=()):
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    return training.fit(
        recipe,
        store,
        assigned,
        seed=0,
        policy=policy,
        directory=directory,
        label=None,
        callbacks=callbacks,
    )


@pytest.mark.parametrize(
    ("xla", "backend", "accelerated", "deterministic", "expected"),
    [
        ("auto", "tensorflow", False, False, math.inf),
        ("auto", "tensorflow", True, False, automatic.COMPILED_FROM),
        ("auto", "tensorflow", True, True, math.inf),
        ("auto", "jax", False, True, 0),
        ("on", "tensorflow", False, True, 0),
        ("off", "jax", True, False, math.inf),
    ],
)
def test_what_is_compiled(xla, backend, accelerated, deterministic, expected):
    found = automatic.compiled_from(
        xla, backend=backend, accelerated=accelerated, deterministic=deterministic
    )
    assert found == expected


def test_only_work_of_minutes_is_compiled_on_a_gpu():
    stage2 = models.training_gflops(models.stage2_cnn("clean"))
    # The published set for 100 epochs: two minutes on an H100, of which compiling would be half.
    assert not GPU.compiles(lambda: stage2 * 3840 * 100)
    assert GPU.compiles(lambda: automatic.COMPILED_FROM)
    assert dataclasses.replace(GPU, compiled_from=0.0).compiles(lambda: 1 / 0)
    assert not POLICY.compiles(lambda: 1 / 0)
    assert (GPU.xla, POLICY.xla) == ("for long work", "off")


def test_the_work_of_a_step_counts_gradients_where_there_are_some():
    model = models.stage2_cnn("clean", 190)
    assert models.training_gflops(model) == pytest.approx(3 * models.gflops(model))
    model.trainable = False
    assert models.training_gflops(model) == pytest.approx(models.gflops(model))


def test_one_call_makes_whole_shares_of_an_epoch():
    for steps in (1, 7, 120, 499, 500, 501, 1200, 1201, 2003):
        count = automatic.steps_per_execution(steps)
        assert steps % count == 0 and count <= 500
    assert automatic.steps_per_execution(120) == 120
    assert automatic.steps_per_execution(1200) == 400


def test_images_on_the_device_train_the_same_weights(store, tmp_path):
    """The last batch of an epoch is smaller; dropout and BatchNorm have their say."""
    recipe = dataclasses.replace(RECIPE, epochs=3)
    assert on_device.is_possible(store, recipe.augment, GPU)
    plain, first = fit(store, tmp_path / "a", POLICY, recipe)
    kept, second = fit(store, tmp_path / "b", GPU, recipe)
    assert digest(plain) == digest(kept)
    assert first["history"] == second["history"]
    steps = math.ceil(len(roles.assign_roles(store.index, "clean", stage=2).train) / 8)
    assert (first["steps_per_execution"], second["steps_per_execution"]) == (1, steps)
    assert not second["xla"]


def test_a_killed_fit_on_the_device_goes_on(store, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=3)

    class Killed(Interrupt):
        def on_train_batch_end(self, batch, logs=None):
            if self.now == self.epoch:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path / "a", GPU, recipe, callbacks=(Killed(1),))
    resumed, _ = fit(store, tmp_path / "a", GPU, recipe)
    assert digest(resumed) == digest(fit(store, tmp_path / "b", POLICY, recipe)[0])


def test_what_looks_at_a_fit_meanwhile_sees_a_model_of_images(store, tmp_path):
    seen = []

    def validate(model):
        probabilities = training.predict(model, store, np.arange(20))
        seen.append(probabilities)
        return {"val_loss": float(probabilities[:, 0].mean())}

    assigned = roles.assign_roles(store.index, "clean", stage=2)
    recipe = dataclasses.replace(RECIPE, epochs=1, keep="last")
    options = {"seed": 0, "policy": GPU, "directory": tmp_path, "label": None}
    model, _ = training.fit(recipe, store, assigned, validate=validate, **options)
    np.testing.assert_allclose(
        seen[-1], model(np.asarray(store.pixels[:20]), training=False), atol=1e-6
    )


@pytest.mark.parametrize(("views", "augment"), [(8, "stored_views"), (8, "none")])
def test_features_on_the_device_train_the_same_head(store, tmp_path, views, augment):
    stored = stored_features(store, views)
    assert on_device.is_possible(stored, augment, GPU)
    recipe = dataclasses.replace(
        RECIPE,
        augment=augment,
        epochs=3,
        build=lambda size: models.head(size, 4, units=(5,), seed=3),
    )
    plain, _ = fit(stored, tmp_path / "a", POLICY, recipe)
    kept, _ = fit(stored, tmp_path / "b", GPU, recipe)
    assert digest(plain) == digest(kept)


def test_what_is_not_kept_on_the_device(store, monkeypatch):
    assert not on_device.is_possible(store, "flips", POLICY)
    assert not on_device.is_possible(store, "flips_blur_rotation", GPU)
    assert not on_device.is_possible(
        store, "flips", dataclasses.replace(GPU, sharing=Sharing(devices=2))
    )
    monkeypatch.setattr(automatic, "KEPT_ON_DEVICE_BYTES", store.pixels.shape[0] * 16 * 16 * 3)
    assert on_device.is_possible(store, "flips", GPU)
    monkeypatch.setattr(automatic, "KEPT_ON_DEVICE_BYTES", store.pixels.shape[0] * 16 * 16 * 3 - 1)
    assert not on_device.is_possible(store, "flips", GPU)
    mapped = pipeline.ImageStore(store.index, np.zeros((2, 16, 16, 3), np.uint8).view(np.memmap))
    assert not on_device.is_possible(mapped, "flips", GPU)
    monkeypatch.setattr(on_device.keras.backend, "backend", lambda: "jax")
    assert not on_device.is_possible(store, "flips", GPU)


def test_gathering_needs_no_operation_that_a_gpu_lacks(store):
    """TensorFlow gathers uint8 on a GPU from a variable only; else pixels came back each step."""
    from tensorflow.python.framework import kernels

    def on_gpu(operation, number):
        return any(
            kernel.device_type == "GPU"
            and all(
                number in constraint.allowed_values.list.type
                for constraint in kernel.constraint
                if constraint.name in ("Tparams", "dtype")
            )
            for kernel in kernels.get_registered_kernels_for_op(operation).kernel
        )

    if not on_gpu("GatherV2", tf.float32.as_datatype_enum):
        pytest.skip("this TensorFlow was built without GPUs")
    examples = on_device.PositionStore(store)
    graph = tf.function(examples.gather).get_concrete_function(
        tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int32), turned=True
    )
    gathers = [node for node in graph.graph.as_graph_def().node if "Gather" in node.op]
    assert {node.op for node in gathers} == {"GatherV2", "ResourceGather"}
    for node in gathers:
        attribute = "Tparams" if node.op == "GatherV2" else "dtype"
        assert on_gpu(node.op, node.attr[attribute].type), node.name
    assert not on_gpu("GatherV2", tf.uint8.as_datatype_enum)


def test_recipes_of_both_stages_can_be_kept():
    for recipe in recipes.RECIPES.values():
        assert recipe.augment in on_device._AUGMENTATIONS


def test_jax_keeps_what_it_compiled(monkeypatch, tmp_path):
    jax = pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        device._keep_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
        jax.config.update("jax_compilation_cache_dir", "mine")
        device._keep_compilations()
        assert jax.config.jax_compilation_cache_dir == "mine"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
