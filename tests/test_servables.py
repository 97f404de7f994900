import gc
import shutil
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import serving_models
import tensorflow as tf
from serving_models import predict_request, refused, states, until
from tensorflow_serving.apis import model_pb2, prediction_log_pb2

from serving.model import warmup
from serving.server import handlers
from serving.server.endpoint import Endpoint
from serving.server.errors import ServingError
from serving.server.manager import Manager
from serving.server.servable import Servable

CODE = grpc.StatusCode


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """TensorFlow's own million objects need not be looked at again at every unload."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return serving_models.write_version(tmp_path_factory.mktemp("models") / "tiny", 1)


@pytest.fixture(scope="module")
def servable(version):
    servable = Servable.load("tiny", 1, version)
    yield servable
    servable.close()


def strings(*values):
    return np.array(values, object)


# -- Running ---------------------------------------------------------------------------------------


def test_answers_equal_an_independent_computation(servable):
    images = [serving_models.pixels(seed) for seed in range(3)]
    encoded = strings(*(serving_models.png(seed) for seed in range(3)))
    expected = np.array([serving_models.probabilities(image) for image in images])
    from_bytes = servable.run("", {"image_bytes": encoded})
    from_pixels = servable.run("pixels", {"image": np.float32(images)})
    for answer in (from_bytes, from_pixels):
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
        np.testing.assert_array_equal(answer["class_id"], expected.argmax(axis=1))
        np.testing.assert_allclose(answer["hsil_plus"], expected[:, 2:].sum(axis=1), atol=1e-6)
        assert answer["label"].tolist() == [
            serving_models.LABELS[i].encode() for i in expected.argmax(axis=1)
        ]
        assert answer["abstain"].tolist() == [
            int(row.max() < serving_models.ABSTAIN_BELOW) for row in expected
        ]
    assert {a.dtype.str for a in from_bytes.values()} == {"<f4", "<i8", "|O"}


def test_the_output_filter_chooses(servable):
    encoded = {"image_bytes": strings(serving_models.png())}
    for names in (["label", "abstain"], ["abstain", "label"]):
        assert list(servable.run("", encoded, names)) == names
    unknown = refused(CODE.INVALID_ARGUMENT, servable.run, "", encoded, ["label", "x"])
    assert unknown == (
        "output tensor alias not found in signature: x Outputs expected to be in the set "
        "{abstain,class_id,hsil_plus,label,probabilities}."
    )


def test_arrays_of_any_layout_are_read(servable):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    for x in (wide[:, ::2], np.asfortranarray(wide[:, :2]), wide[::-1, 2:]):
        answer = servable.run("linear", {"x": x})["y"]
        np.testing.assert_array_equal(answer, serving_models.linear(x, bias=10))
    assert servable.run("linear", {"x": np.zeros((0, 2), np.float32)})["y"].shape == (0,)


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (
            "two_inputs",
            {"a": np.float32([1])},
            "input size does not match signature: expected {a,b}, got {a}",
        ),
        (
            "linear",
            {"x": np.float32([[1, 2]]), "z": np.float32([1])},
            "input size does not match signature: expected {x}, got {x,z}",
        ),
        (
            "two_inputs",
            {"a": np.float32([1]), "c": np.int64([1])},
            "Signature input alias: expected {a,b}, got {a,c}",
        ),
        (
            "two_inputs",
            {"a": np.float32([1]), "b": np.int32([1])},
            "Expects arg[1] to be int64 but int32 is provided",
        ),
        ("linear", {"x": np.ones((1, 2))}, "Expects arg[0] to be float but double is provided"),
        ("", {"image_bytes": np.uint8([1])}, "Expects arg[0] to be string but uint8 is provided"),
        ("linear", {"x": np.float32(1)}, "Input x has the shape [], expected [?,2]"),
        ("linear", {"x": np.float32([1, 2])}, "Input x has the shape [2], expected [?,2]"),
        ("linear", {"x": np.float32([[1]])}, "Input x has the shape [1,1], expected [?,2]"),
        (
            "pixels",
            {"image": np.float32([[1, 2, 3]])},
            "Input image has the shape [1,3], expected [?,8,8,3]",
        ),
        (
            "",
            {"image_bytes": strings(b"a", 3)},
            "Input image_bytes holds objects that are neither bytes nor text",
        ),
        (
            "linear",
            {"x": np.zeros((1, 2), "M8[s]")},
            "Input x has the dtype datetime64[s], which is no tensor's",
        ),
        (
            "__saved_model_init_op",
            {},
            "A Tensor of the signature was not found in the Graph",
        ),
    ],
)
def test_inputs_that_do_not_fit(servable, signature, inputs, message):
    assert refused(CODE.INVALID_ARGUMENT, servable.run, signature, inputs) == message


def test_defaults_of_a_signature_fill_what_was_not_sent():
    with tf.Graph().as_default() as graph:
        a, b = (tf.compat.v1.placeholder(tf.float32, name=name) for name in "ab")
        signature = tf.compat.v1.saved_model.predict_signature_def({"a": a, "b": b}, {"y": a + b})
    signature.defaults["b"].CopyFrom(tf.make_tensor_proto(np.float32([3])))
    one = np.float32([1])
    endpoint = Endpoint(graph, signature)
    assert endpoint.feeds({"a": one})["b"].tolist() == [3]
    assert endpoint.feeds({"a": one, "b": one})["b"].tolist() == [1]
    # Any rank.
    endpoint.check_fit({"a": one, "b": np.float32([[[1]]])})
    for sent, message in (
        ({"c": one}, "Signature input alias: expected {a,b}, got {c}"),
        ({"a": one, "c": one}, "Inputs contains invalid name: expected {a,b}, got {a,c}"),
        ({"a": one, "b": one, "c": one}, "input size does not match signature"),
    ):
        assert refused(CODE.INVALID_ARGUMENT, endpoint.feeds, sent).startswith(message)


def test_unknown_sizes_are_left_to_the_graph(servable):
    answer = servable.run("two_inputs", {"a": np.float32([1, 2]), "b": np.int64([3])})["total"]
    np.testing.assert_array_equal(answer, [4, 5])
    message = refused(
        CODE.INVALID_ARGUMENT,
        servable.run,
        *("two_inputs", {"a": np.float32([1, 2, 3]), "b": np.int64([1, 2])}),
    )
    assert message.startswith("Incompatible shapes: ")


def test_one_broken_image_fails_its_request_only(servable):
    broken = strings(serving_models.png(), b"no image")
    message = refused(CODE.INVALID_ARGUMENT, servable.run, "", {"image_bytes": broken})
    assert message.startswith("Unknown image file format.")
    assert servable.run("", {"image_bytes": broken[:1]})["class_id"].shape == (1,)


def test_long_messages_are_cut(servable):
    names = {f"input_{number:04}": np.float32([1]) for number in range(300)}
    message = refused(CODE.INVALID_ARGUMENT, servable.run, "linear", names)
    assert len(message) == 1024 and message.startswith("input size does not match signature")


def test_a_timeout_cancels_the_run(servable):
    # Uncancelled it would outlast this file's timeout.
    slow = {"seconds": np.float32([3600])}
    refused(CODE.DEADLINE_EXCEEDED, servable.run, "slow", slow, timeout=0.1)
    refused(CODE.DEADLINE_EXCEEDED, servable.run, "slow", slow, timeout=0)
    # Longer than a RunOptions can say.
    x = np.float32([[1, 2]])
    assert servable.run("linear", {"x": x}, timeout=1e12)["y"].tolist() == [13]


def test_many_threads_get_their_own_answers(servable):
    wrong = []

    def call(number):
        x = np.full((1 + number % 3, 2), number, np.float32)
        for _ in range(100):
            answer = servable.run("linear", {"x": x}, timeout=10)["y"]
            if not np.array_equal(answer, serving_models.linear(x, bias=10)):
                wrong.append(answer)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_cancels_what_runs(version):
    servable = Servable.load("tiny", 1, version)
    errors = []

    def call():
        try:
            servable.run("slow", {"seconds": np.float32([30])})
        except ServingError as error:
            errors.append(error.code)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)
    servable.close()
    thread.join(10)
    assert errors == [CODE.CANCELLED]
    refused(CODE.CANCELLED, servable.run, "linear", {"x": np.float32([[1, 2]])})
    servable.close()


# -- Loading ---------------------------------------------------------------------------------------


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])


@pytest.mark.parametrize(
    ("damage", "codes"),
    [
        (lambda v: (v / "saved_model.pb").unlink(), {CODE.NOT_FOUND}),
        (lambda v: half(v / "saved_model.pb"), {CODE.DATA_LOSS}),
        (lambda v: (v / "saved_model.pb").write_bytes(b""), {CODE.DATA_LOSS}),
        # The real server takes this for a model without variables, and fails at every request.
        (lambda v: (v / "variables").rename(v / "later"), {CODE.DATA_LOSS, CODE.NOT_FOUND}),
        (
            lambda v: (v / "variables" / "variables.index").unlink(),
            {CODE.DATA_LOSS, CODE.NOT_FOUND},
        ),
        (
            lambda v: half(v / "variables" / "variables.data-00000-of-00001"),
            {CODE.OUT_OF_RANGE, CODE.DATA_LOSS},
        ),
    ],
)
def test_half_written_versions_are_refused(version, tmp_path, damage, codes):
    copy = serving_models.copy_version(version, tmp_path / "2")
    damage(copy)
    with pytest.raises(ServingError) as caught:
        Servable.load("tiny", 2, copy)
    assert caught.value.code in codes
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "name", ["variables.data-00000-of-00001", "variables.index"], ids=["data", "index"]
)
def test_a_flipped_bit_of_a_new_version_leaves_the_old_one_serving(version, tmp_path, caplog, name):
    base = tmp_path / "tiny"
    base.mkdir()
    serving_models.copy_version(version, base / "1")
    manager = Manager(serving_models.model_config(tiny=base), load=Servable.load, poll_seconds=0)
    manager.start()
    hidden = shutil.copytree(version, base / ".2.copying")
    path = hidden / "variables" / name
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:40], whole[40] ^ 1, *whole[41:]]))
    hidden.rename(base / "2")
    try:
        manager._scan()
        assert states(manager) == [(2, "END"), (1, "AVAILABLE")]
        with manager.use(model_pb2.ModelSpec(name="tiny")) as serving:
            assert serving.version == 1
            answer = serving.run("linear", {"x": np.float32([[1, 2]])})["y"]
            assert answer == serving_models.linear(np.float32([[1, 2]]), bias=10.0)
        (line,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        assert str(base / "2") in line and "\n" not in line
        # The same files are not tried again; whole ones are.
        manager._scan()
        assert sum(each.levelname == "ERROR" for each in caplog.records) == 1
        (base / "2" / "variables" / name).write_bytes(whole)
        manager._scan()
        assert (2, "AVAILABLE") in states(manager)
    finally:
        manager.stop(drain_seconds=0)


def test_a_model_with_another_tag_is_refused(tmp_path):
    module = tf.Module()
    module.call = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, str(tmp_path / "1"))
    path = tmp_path / "1" / "saved_model.pb"
    path.write_bytes(path.read_bytes().replace(b"serve", b"train"))
    message = refused(CODE.DATA_LOSS, Servable.load, "tiny", 1, tmp_path / "1")
    assert "serve" in message


def test_loads_do_not_grow(version):
    process = psutil.Process()

    def cycle():
        servable = Servable.load("tiny", 1, version)
        servable.run("linear", {"x": np.float32([[1, 2]])})
        servable.close()

    for _ in range(4):
        cycle()
    before = process.memory_info().rss
    for _ in range(12):
        cycle()
    grown = (process.memory_info().rss - before) / 2**20
    print(f"12 loads and unloads: {grown:.1f} MiB more")
    assert grown < 3


# -- Warm-up ---------------------------------------------------------------------------------------


def test_warm_up_records_are_written_and_read(tmp_path):
    logs = [
        serving_models.predict_log("linear", x=[[1.0, 2.0]]),
        serving_models.classify_log([1.0, 2.0]),
    ]
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    warmup.write(path, logs)
    assert list(warmup.read(path)) == logs
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_warm_up_of_a_version_is_replayed(servable, version, monkeypatch):
    calls = []
    monkeypatch.setattr(handlers, "predict_with", lambda s, r: calls.append(r))
    monkeypatch.setattr(handlers, "classify_with", lambda s, r: calls.append(r))
    assert warmup.replay(servable) == 2
    assert [call.model_spec.signature_name for call in calls] == ["linear", "classify"]


def damaged_record(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def other_log(kind):
    log = prediction_log_pb2.PredictionLog()
    getattr(log, kind).SetInParent()
    return log


GOOD = serving_models.predict_log("linear", x=[[1.0, 2.0]])
BAD = serving_models.predict_log("linear", x=[[1.0]])


@pytest.mark.parametrize(
    ("logs", "code", "expected"),
    [
        ([GOOD, BAD], CODE.INVALID_ARGUMENT, "warm-up record 2 failed: Input x has the shape"),
        ([GOOD, GOOD, other_log("multi_inference_log")], CODE.UNIMPLEMENTED, "warm-up record 3"),
        ([other_log("session_run_log")], CODE.UNIMPLEMENTED, "got session_run_log"),
        ([prediction_log_pb2.PredictionLog()], CODE.UNIMPLEMENTED, "got an empty record"),
        ([GOOD] * 8, CODE.INVALID_ARGUMENT, "exceeds the maximum (7)"),
    ],
)
def test_one_bad_record_fails_the_load(version, tmp_path, monkeypatch, logs, code, expected):
    assert warmup.MAX_RECORDS == 1000
    monkeypatch.setattr(warmup, "MAX_RECORDS", 7)
    copy = serving_models.copy_version(version, tmp_path / "2")
    serving_models.write_warmup(copy, logs)
    message = refused(code, warmup.load, "tiny", 2, copy)
    assert expected in message and str(copy) in message


@pytest.mark.parametrize("content", [b"these are no records", damaged_record, half])
def test_damaged_warm_up_files_fail_the_load(version, tmp_path, content):
    copy = serving_models.copy_version(version, tmp_path / "2")
    path = serving_models.write_warmup(copy, [GOOD, GOOD])
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    number = 1 if isinstance(content, bytes) or content is half else 2
    message = refused(CODE.DATA_LOSS, warmup.load, "tiny", 2, copy)
    assert f"{path}: record {number} is damaged or no PredictionLog" in message


# -- Switching -------------------------------------------------------------------------------------


def test_hot_swap_under_load(tmp_path):
    """Versions appear, are deleted and break; every answer is right for the version it names."""
    base = tmp_path / "tiny"
    serving_models.write_version(base, 1)
    manager = Manager(serving_models.model_config(tiny=base), load=warmup.load, poll_seconds=0.02)
    manager.start()
    stop, failures, answered = threading.Event(), [], {}

    def call(seed):
        generator = np.random.default_rng(seed)
        # The pause leaves the processors to the loading thread.
        while not stop.wait(0.002):
            x = generator.normal(size=(2, 2)).astype(np.float32)
            request = predict_request("tiny", "linear", x=x)
            try:
                response = handlers.predict(manager, request, timeout=9)
            except ServingError as error:
                failures.append(error)
                return
            number = response.model_spec.version.value
            expected = serving_models.linear(x, bias=10 * number)
            if not np.allclose(response.outputs["y"].float_val, expected, atol=1e-5):
                failures.append((number, x))
            answered[number] = answered.get(number, 0) + 1

    threads = [threading.Thread(target=call, args=(seed,), daemon=True) for seed in range(3)]
    for thread in threads:
        thread.start()
    for number in range(2, 5):
        serving_models.write_version(base, number, warmup=number % 2 == 0)
        until(lambda n=number: (n, "AVAILABLE") in states(manager))
        half_copied = base / str(100 + number)
        shutil.copytree(base / str(number) / "variables", half_copied / "variables")
        until(lambda n=number: (100 + n, "END") in states(manager))
        shutil.rmtree(base / str(number - 1))
        shutil.rmtree(half_copied)
    stop.set()
    for thread in threads:
        thread.join(10)
    manager.stop()
    assert not failures
    assert set(answered) >= {2, 3, 4}
    assert {state for _, state in states(manager)} == {"END"}
