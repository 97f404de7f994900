"""Small SavedModels, built on the spot in well under a second, for the tests of the server.

    path = write_version(tmp_path / "tiny", 2, bias=20.0)     # tmp_path/tiny/2, complete at once
    config = model_config(tiny=tmp_path / "tiny")             # a ModelServerConfig

Every signature is cheap and has a plain-Python twin here, so that a test knows the right answer.
`bias` is the way to tell versions apart: it is added to every answer of `linear`.

| signature | inputs | outputs |
| --- | --- | --- |
| `serving_default` | `image_bytes` string [n] | `probabilities` float32 [n, 4], `label` string [n], `class_id` int64 [n], `hsil_plus` float32 [n], `abstain` int64 [n]; bytes that are no image: INVALID_ARGUMENT |
| `pixels` | `image` float32 [n, 8, 8, 3] | the same; an 8 x 8 image gives the same as its bytes |
| `linear` | `x` float32 [n, 2] | `y` float32 [n] = scale * x0 + x1 + bias |
| `two_inputs` | `a` float32 [n], `b` int64 [n] | `total` float32 [n] = a + b |
| `ragged` | `x` float32 [n, m] | `total` float32 [n], the sum of each row |
| `scalar_output` | `x` float32 [n] | `total` float32 [], the sum |
| `classify` | `inputs` string [n], tf.Example with `x` float [2] | `classes` string [n, 4], `scores` float32 [n, 4]: LABELS and `x0, x1, scale, bias` |
| `regress` | `inputs` string [n], tf.Example with `x` float [2] | `outputs` float32 [n], as `linear` |
| `echo_bytes` | `payload` string [n] | `payload_bytes` string [n], unchanged |
| `slow` | `seconds` float32 [n] | `seconds` float32 [n], after a busy wait of the largest of them |
"""  # noqa: E501

import atexit
import functools
import math
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import ServingError

LABELS = ("NILM", "LSIL", "HSIL", "SCC")

#: Below this largest probability `abstain` is 1.
ABSTAIN_BELOW = 0.4

#: The first of several threads writes.
_saving = threading.Lock()


class Tiny(tf.Module):
    """The signatures of the module's table."""

    def __init__(self, scale: float, bias: float) -> None:
        super().__init__()
        self.scale = tf.Variable(scale, dtype=tf.float32)
        self.bias = tf.Variable(bias, dtype=tf.float32)

    def _diagnosis(self, colours: tf.Tensor) -> dict[str, tf.Tensor]:
        zeros = tf.zeros_like(colours[:, :1])
        probabilities = tf.nn.softmax(tf.concat([zeros, colours / 64.0], axis=1))
        class_id = tf.argmax(probabilities, axis=1, output_type=tf.int64)
        return {
            "probabilities": probabilities,
            "label": tf.gather(tf.constant(LABELS), class_id),
            "class_id": class_id,
            "hsil_plus": probabilities[:, 2] + probabilities[:, 3],
            "abstain": tf.cast(tf.reduce_max(probabilities, axis=1) < ABSTAIN_BELOW, tf.int64),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def from_bytes(self, image_bytes):
        def mean_colour(data):
            image = tf.io.decode_image(data, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32), axis=[0, 1])

        return self._diagnosis(
            tf.map_fn(mean_colour, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.float32))
        )

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "image")])
    def from_pixels(self, image):
        return self._diagnosis(tf.reduce_mean(tf.ensure_shape(image, [None, 8, 8, 3]), axis=[1, 2]))

    def _line(self, x):
        return self.scale * x[:, 0] + x[:, 1] + self.bias

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def linear(self, x):
        return {"y": self._line(x)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, "a"),
            tf.TensorSpec([None], tf.int64, "b"),
        ]
    )
    def two_inputs(self, a, b):
        return {"total": a + tf.cast(b, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
    def ragged(self, x):
        return {"total": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def scalar_output(self, x):
        return {"total": tf.reduce_sum(x)}

    def _parsed(self, inputs):
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        x = self._parsed(inputs)
        own = tf.fill([tf.shape(x)[0], 1], 1.0)
        scores = tf.concat([x, own * self.scale, own * self.bias], axis=1)
        return {"classes": tf.tile([LABELS], [tf.shape(x)[0], 1]), "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs):
        return {"outputs": self._line(self._parsed(inputs))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "payload")])
    def echo_bytes(self, payload):
        return {"payload_bytes": tf.identity(payload)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "seconds")])
    def slow(self, seconds):
        end = tf.timestamp() + tf.cast(tf.reduce_max(seconds), tf.float64)
        (now,) = tf.while_loop(
            lambda now: now < end, lambda now: (tf.timestamp(),), (tf.timestamp(),)
        )
        with tf.control_dependencies([now]):
            return {"seconds": tf.identity(seconds)}


@functools.cache
def _written_once() -> Path:
    """A SavedModel of `Tiny`: tracing takes a second, and versions differ in two numbers."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = Tiny(1.0, 0.0)
    signatures = {
        "serving_default": model.from_bytes,
        "pixels": model.from_pixels,
        "linear": model.linear,
        "two_inputs": model.two_inputs,
        "ragged": model.ragged,
        "scalar_output": model.scalar_output,
        "classify": model.classify,
        "regress": model.regress,
        "echo_bytes": model.echo_bytes,
        "slow": model.slow,
    }
    tf.saved_model.save(model, str(folder), signatures=signatures)
    return folder


def write_model(
    folder: Path, *, scale: float = 1.0, bias: float = 0.0, warmup: bool = True
) -> Path:
    """Writes one version; it appears under its name complete or not at all.

    Args:
        folder: The version's directory, for example models/tiny/1. It must not exist.
        scale: Factor of the first number in `linear`.
        bias: Added by `linear`.
        warmup: Adds assets.extra/tf_serving_warmup_requests: one `linear`, one `classify`.

    Returns:
        `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.parent / f".{folder.name}.writing"
    with _saving:
        shutil.copytree(_written_once(), hidden)
    prefix = str(hidden / "variables" / "variables")
    stored = tf.train.load_checkpoint(prefix)
    values = {name: stored.get_tensor(name) for name in stored.get_variable_to_shape_map()}
    for name, value in (("scale", scale), ("bias", bias)):
        values[f"{name}/.ATTRIBUTES/VARIABLE_VALUE"] = np.float32(value)
    names = list(values)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )
    if warmup:
        write_warmup(hidden, [predict_log("linear", x=[[1.0, 2.0]]), classify_log([1.0, 2.0])])
    hidden.rename(folder)
    return folder


def write_version(base: Path, version: int, **values: float | bool) -> Path:
    """`write_model` into base/version; `bias` is ten times the version unless given."""
    return write_model(base / str(version), **{"bias": 10.0 * version, **values})


def copy_version(source: Path, target: Path) -> Path:
    """Copies a version's directory under another number, complete at once; the quickest version."""
    hidden = target.parent / f".{target.name}.copying"
    shutil.copytree(source, hidden)
    return hidden.rename(target)


def linear(x: np.ndarray, *, scale: float = 1.0, bias: float = 0.0) -> np.ndarray:
    """What the signature `linear` answers, in numpy."""
    x = np.asarray(x, np.float32)
    return np.float32(scale) * x[:, 0] + x[:, 1] + np.float32(bias)


def probabilities(image: np.ndarray) -> list[float]:
    """What `serving_default` answers for one uint8 image [height, width, 3], in plain Python."""
    exponents = [1.0, *(math.exp(float(c) / 64) for c in image.reshape(-1, 3).mean(axis=0))]
    return [e / sum(exponents) for e in exponents]


def png(seed: int = 0, size: int = 8) -> bytes:
    """The bytes of a small PNG whose pixels are `pixels(seed, size)`."""
    return tf.io.encode_png(pixels(seed, size)).numpy()


def pixels(seed: int = 0, size: int = 8) -> np.ndarray:
    """Noise, uint8 [size, size, 3], with another mean for each seed."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, generator.integers(64, 256), (size, size, 3)).astype(np.uint8)


def example(*x: float) -> tf.train.Example:
    """The tf.Example that `classify` and `regress` read."""
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=x))
    return tf.train.Example(features=tf.train.Features(feature={"x": feature}))


def model_config(**base_paths: Path) -> model_server_config_pb2.ModelServerConfig:
    """A ModelServerConfig of models by name; change its entries for policies and labels."""
    config = model_server_config_pb2.ModelServerConfig()
    for name, base_path in base_paths.items():
        config.model_config_list.config.add(
            name=name, base_path=str(base_path), model_platform="tensorflow"
        )
    return config


def predict_request(
    model: str, signature: str = "", *, version: int | None = None, label: str = "", **inputs
) -> predict_pb2.PredictRequest:
    """A PredictRequest; inputs are arrays or nested lists (floats become float32)."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def predict_log(signature: str, **inputs) -> prediction_log_pb2.PredictionLog:
    """A warm-up record of a predict request."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("tiny", signature, **inputs))
    return log


def classify_log(*examples: list[float]) -> prediction_log_pb2.PredictionLog:
    """A warm-up record of a classify request."""
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "tiny"
    request.model_spec.signature_name = "classify"
    request.input.example_list.examples.extend(example(*x) for x in examples)
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.request.CopyFrom(request)
    return log


def write_warmup(version: Path, logs: list[prediction_log_pb2.PredictionLog]) -> Path:
    """Writes a version's warm-up records where TensorFlow Serving looks for them."""
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return path


def first_clause(message: str) -> str:
    """What of an error's text is TensorFlow Serving's; what follows is each server's own."""
    return re.split(r"[:.,]\s", message, maxsplit=1)[0]


def refused(code: grpc.StatusCode, call, *arguments, **options) -> str:
    """The message, one line but for the graph's node, of the ServingError that a call raises."""
    with pytest.raises(ServingError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value.message
    assert "\n" not in caught.value.message.partition("\n\t [[{{")[0]
    return caught.value.message


def until(condition, *arguments) -> None:
    """Waits, ten seconds at most, until a function of no side effects returns true."""
    end = time.monotonic() + 10
    while not condition(*arguments):
        assert time.monotonic() < end, "waited ten seconds"
        time.sleep(0.005)


def states(manager, name: str = "tiny") -> list[tuple[int, str]]:
    """A model's versions as `GetModelStatus` lists them: [(2, "AVAILABLE"), (1, "END")]."""
    listed = manager.status(model_pb2.ModelSpec(name=name)).model_version_status
    state = get_model_status_pb2.ModelVersionStatus.State
    return [(entry.version, state.Name(entry.state)) for entry in listed]
