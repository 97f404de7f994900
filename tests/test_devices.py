"""What a process computes on, and that several devices find the weights of one."""

import contextlib
import dataclasses
import json
import os
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command

from finetune.search import local_workers
from replication.learning import features, training
from replication.runs import device, sharing
from tfds_pap import cluster, gpus, keras_settings, pipeline, roles
from tfds_pap.errors import PapError

#: Of a weight of 1 or so between one device and two: sums are taken in another order.
TOLERANCE = 1e-4

#: 21 images in batches of 8: the last one cannot be halved.
TRAIN, TUNE, BATCH = 21, 7, 8


def network(size):
    images = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(4, 3, kernel_regularizer="l2")(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))


RECIPE = training.Recipe(
    name="small",
    stage=2,
    build=network,
    size=12,
    resize="bilinear",
    epochs=3,
    patience=0,
    batch_size=BATCH,
    learning_rate=0.1,
    momentum=0.9,
    label_smoothing=0.1,
    class_weights="balanced",
    keep="last",
    augment="flips",
)


def store():
    random = np.random.default_rng(0)
    count = TRAIN + TUNE
    labels = random.permutation(np.arange(count) % 7 % 3)
    # Classes differ in brightness, so that statistics of parts differ from those of a batch.
    noise = random.integers(0, 96, (count, 12, 12, 3)) + 70 * labels[:, None, None, None]
    text = np.arange(count).astype(str)
    index = pipeline.Index(text, text, labels, text, ("a", "b", "c"))
    return pipeline.ImageStore(index, tf.constant(noise, tf.uint8))


def trained(policy, folder, examples, recipe=RECIPE):
    assigned = roles.Roles(np.arange(TRAIN), np.arange(TRAIN, TRAIN + TUNE), np.arange(0))
    return training.fit(
        recipe, examples, assigned, seed=3, policy=policy, directory=Path(folder), label=None
    )


def compare_one_and_two(folder):
    """Prints, as JSON, how far two devices are from one; runs in a process of its own."""
    one, two = device.configure(xla="off"), device.configure(xla="off", strategy="mirrored")
    examples = store()
    models, outcomes = zip(
        *(trained(each, Path(folder) / each.device, examples) for each in (one, two)), strict=True
    )
    alone = models[1]
    if keras.backend.backend() == "tensorflow":
        kept, sharing.synchronized = sharing.synchronized, lambda *_: contextlib.nullcontext()
        alone, _ = trained(two, Path(folder) / "alone", examples)
        sharing.synchronized = kept

    def apart(first, second):
        pairs = zip(first.get_weights(), second.get_weights(), strict=True)
        return max(float(np.abs(a - b).max()) for a, b in pairs)

    keras.utils.set_random_seed(3)
    untrained = network(12)

    def history(name):
        first, second = ([epoch[name] for epoch in each["history"]] for each in outcomes)
        return float(np.abs(np.subtract(first, second)).max())

    positions = np.arange(TRAIN + TUNE)
    predictions = [training.predict(model, examples, positions, TUNE) for model in models]
    parts = []

    def note(batch):
        shards = getattr(batch, "addressable_shards", None)
        parts.extend([shard.data.shape[0] for shard in shards] if shards else [batch.shape[0]])
        return batch * 2.0

    doubled = np.asarray(two.sharing.forward(note)(tf.reshape(tf.range(8.0), (8, 1)).numpy()))
    extractors = []
    for each in (one, two):
        keras.utils.set_random_seed(1)
        with each.sharing.scope():
            extractor = network(12)
        pixels = tf.cast(examples.pixels[:BATCH], tf.float32)
        extractors.append(np.asarray(features.forward(extractor, each, BATCH)(pixels)))
    try:
        trained(two, folder, examples, dataclasses.replace(RECIPE, batch_size=7))
    except PapError as error:
        refused = str(error)
    found = {
        "device": two.device,
        "devices": two.sharing.devices,
        "weights": apart(*models),
        "unsynchronised": apart(models[0], alone),
        "moved": apart(models[0], untrained),
        "val_loss": history("val_loss"),
        "val_accuracy": history("val_accuracy"),
        "predictions": float(np.abs(np.subtract(*predictions)).max()),
        "rows": len(predictions[1]),
        "parts": parts,
        "doubled": doubled[:, 0].tolist(),
        "features": float(np.abs(np.subtract(*extractors)).max()),
        "refused": refused,
        "saved": [layer.get_config().get("synchronized", False) for layer in models[1].layers],
    }
    print(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_find_the_weights_of_one(backend, tmp_path):
    pytest.importorskip(backend)
    # Devices can only be divided before a backend computes, hence a process of its own.
    lines = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_devices; "
    done = command(
        "-c",
        "from tfds_pap import commands; commands.prepare_tensorflow(); "
        f"{lines} test_devices.compare_one_and_two({str(tmp_path)!r})",
        env={**os.environ, "KERAS_BACKEND": backend, sharing.CPU_DEVICES: "2"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"].endswith("divided into 2 devices") and found["devices"] == 2
    assert found["weights"] < TOLERANCE < 1 < found["moved"]
    assert found["predictions"] < TOLERANCE and found["rows"] == TRAIN + TUNE
    assert found["val_loss"] < TOLERANCE and found["val_accuracy"] < TOLERANCE
    assert found["features"] < TOLERANCE
    # Of eight images each device had four.
    assert found["parts"] == [4, 4] and found["doubled"] == list(range(0, 16, 2))
    assert found["refused"] == "--batch_size=7 must divide by the 2 devices of --strategy=mirrored"
    assert not any(found["saved"])
    if backend == "tensorflow":
        assert found["unsynchronised"] > 100 * TOLERANCE, "BatchNorm must look at the whole batch"


class _JaxDevice:
    platform, device_kind, compute_capability = "gpu", "NVIDIA H100 80GB HBM3", "9.0"


def on_jax(monkeypatch, devices):
    """Has JAX compute, on these devices, wherever it is installed or not."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=lambda: devices))
    monkeypatch.setattr(device, "_keep_compilations", lambda: None)
    monkeypatch.setattr(keras.mixed_precision, "set_dtype_policy", lambda name: None)


def on_tensorflow(monkeypatch, *capabilities):
    """Has TensorFlow see GPUs of these compute capabilities."""
    gpus = [types.SimpleNamespace(capability=each) for each in capabilities]
    config = tf.config.experimental
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(config, "set_memory_growth", lambda gpu, on: None)
    monkeypatch.setattr(
        config,
        "get_device_details",
        lambda gpu: {"device_name": "NVIDIA A10", "compute_capability": gpu.capability},
    )
    monkeypatch.setattr(keras.mixed_precision, "set_dtype_policy", lambda name: None)


def test_jax_is_asked_for_its_own_devices(monkeypatch):
    on_jax(monkeypatch, [_JaxDevice(), _JaxDevice()])
    policy = device.configure()
    # The second one is idle.
    assert policy.device == "NVIDIA H100 80GB HBM3" and policy.accelerated
    assert policy.precision == "mixed_bfloat16" and not policy.fewer_passes


def test_without_a_gpu_jax_computes_on_the_processor(monkeypatch):
    on_jax(monkeypatch, [types.SimpleNamespace(platform="cpu", device_kind="cpu")])
    policy = device.configure()
    assert policy.device.startswith("CPU (") and policy.precision == "float32"


def test_tensorflow_names_its_gpu_and_what_it_computes_in(monkeypatch):
    on_tensorflow(monkeypatch, (8, 6))
    policy = device.configure()
    assert (policy.device, policy.precision) == ("NVIDIA A10", "mixed_bfloat16")
    on_tensorflow(monkeypatch, (8, 6), (7, 5))
    assert device.configure().precision == "float32"


def test_devices_that_share_are_counted(monkeypatch):
    on_tensorflow(monkeypatch, (8, 6), (8, 6))
    monkeypatch.setattr(sharing, "among_all", lambda: sharing.Sharing(devices=2))
    policy = device.configure(strategy="mirrored")
    assert policy.device == "2 x NVIDIA A10"
    # XLA looks for the variables of the first device on the second one.
    assert device.configure().jit_compile and not policy.jit_compile
    with pytest.raises(PapError, match=r"^--xla=on: .*--strategy=mirrored$"):
        device.configure(xla="on", strategy="mirrored")


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_tensorflow_leaves_gpus_to_the_backend(monkeypatch, backend):
    asked = []
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu 0"])
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: asked.append((devices, kind))
    )
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: asked.append((gpu, on))
    )
    keras_settings.leave_gpus()
    assert asked == [("gpu 0", True) if backend == "tensorflow" else ([], "GPU")]


def test_another_backend_cannot_share(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(PapError, match="needs KERAS_BACKEND=tensorflow or jax, not torch"):
        sharing.among_all()


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_a_processor_is_divided_into_whole_devices(monkeypatch, text):
    monkeypatch.setenv(sharing.CPU_DEVICES, text)
    with pytest.raises(PapError, match=f"^PAP_CPU_DEVICES={text}: expected a number of devices"):
        sharing.divide_processor()


def test_a_batch_that_cannot_be_divided_is_given_to_every_device():
    batches = tf.data.Dataset.range(11).batch(4).map(lambda number: (number, 10 * number))
    even = list(sharing.evenly(batches, 2).as_numpy_iterator())
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 8, 9, 10]]
    assert [images.tolist() for images, _ in even] == expected
    assert all((labels == 10 * images).all() for images, labels in even)
    assert sharing.evenly(batches, 1) is batches


def test_each_worker_of_a_search_sees_one_gpu(tmp_path, monkeypatch):
    seen = []

    class Process:
        stdin = None

        def __init__(self, arguments, env, **others):
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self):
            return 0

    monkeypatch.setattr(local_workers.subprocess, "Popen", Process)
    for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT"):
        # So that what the workers' chief sets is taken back.
        monkeypatch.setenv(f"KERASTUNER_{name}", "")
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    for named, expected in ((None, ["2", "10", "2"]), ("2,GPU-5f", ["2", "GPU-5f", "2"])):
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        seen.clear()
        with local_workers.LocalWorkers(3, tmp_path):
            assert seen == expected


@pytest.mark.parametrize(
    ("named", "worker", "expected"),
    [
        ("2,GPU-5f", 3, "GPU-5f"),
        ("2", 1, "2"),
        ("", 0, ""),
        # Whoever names workers otherwise, as a queueing system does, gave them their devices.
        ("2,GPU-5f", "slurm-0", "2,GPU-5f"),
    ],
)
def test_each_worker_of_a_cluster_on_this_machine_sees_one_gpu(
    named, worker, expected, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    cluster.see_one_gpu(worker)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
