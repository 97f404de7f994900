import threading

import grpc
import numpy as np
import pytest
import serving_models
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_models import refused, until

from serving.server import batching_config
from serving.server.batching import Batcher
from serving.server.batching_config import BatchingParameters
from serving.server.errors import ServingError
from serving.server.servable import Servable

CODE = grpc.StatusCode


class Doubles:
    """A graph that doubles its input, and remembers the sizes of the batches that it saw."""

    def __init__(self):
        self.sizes = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, key, arrays, timeout):
        self.sizes.append(len(arrays["x"]))
        assert self.open.wait(10)
        if np.any(arrays["x"] < 0):
            raise ServingError(CODE.INVALID_ARGUMENT, f"negative {key}")
        if key == "scalar":
            return {"y": arrays["x"].sum()}
        if key == "short":
            return {"y": arrays["x"][1:]}
        if key == "crash":
            raise ZeroDivisionError("no such luck")
        return {"y": 2 * arrays["x"]}


@pytest.fixture
def graph():
    return Doubles()


@pytest.fixture
def make(graph):
    made = []

    def make(**parameters):
        made.append(Batcher(graph, BatchingParameters(**{"num_batch_threads": 1, **parameters})))
        return made[-1]

    yield make
    graph.open.set()
    for batcher in made:
        batcher.close()


class Call(threading.Thread):
    """One request from a thread of its own."""

    def __init__(self, batcher, x, key="double", timeout=10.0):
        super().__init__()
        self.x = np.asarray(x, np.float32)
        self.arguments = (batcher, key, timeout)
        self.answer = self.error = None
        self.start()

    def run(self):
        batcher, key, timeout = self.arguments
        try:
            self.answer = batcher.run(key, {"x": self.x}, timeout)["y"]
        except ServingError as error:
            self.error = error

    def right(self):
        self.join(10)
        return self.error is None and np.array_equal(self.answer, 2 * self.x)


def occupied(batcher, graph, **options):
    """Keeps the batcher's only thread busy until `graph.open` is set."""
    graph.open.clear()
    seen = len(graph.sizes)
    call = Call(batcher, [0], **options)
    until(lambda: len(graph.sizes) == seen + 1)
    return call


def waiting(batcher):
    return [len(b.tasks) for q in list(batcher._queues.values()) for b in list(q)]


# -- Batches ---------------------------------------------------------------------------------------


def test_requests_that_wait_run_as_one(make, graph):
    batcher = make(max_batch_size=8)
    calls = [occupied(batcher, graph)]
    calls += [Call(batcher, [i] * i) for i in (1, 2, 4)]
    until(lambda: waiting(batcher) == [3])
    graph.open.set()
    assert all(call.right() for call in calls)
    assert graph.sizes == [1, 7]


def test_a_full_batch_does_not_wait_for_its_time(make, graph):
    batcher = make(max_batch_size=4, batch_timeout_micros=10_000_000)
    calls = [Call(batcher, [1, 2]), Call(batcher, [3, 4])]
    assert all(call.right() for call in calls) and graph.sizes == [4]
    # Nor does a batch that the next request does not fit into.
    calls = [Call(batcher, [1, 2, 3])]
    until(lambda: waiting(batcher) == [1])
    calls += [Call(batcher, [4, 5, 6])]
    assert calls[0].right() and graph.sizes == [4, 3]
    calls += [Call(batcher, [7])]
    assert all(call.right() for call in calls) and graph.sizes == [4, 3, 4]


def test_a_lone_request_waits_for_company_as_long_as_told(make, graph):
    # Company that comes within the time told is run along; nobody else is waited for.
    patient = make(max_batch_size=4, batch_timeout_micros=3_600_000_000)
    calls = [Call(patient, [1])]
    assert graph.sizes == []
    calls.append(Call(patient, [2, 3, 4]))
    assert all(call.right() for call in calls) and graph.sizes == [4]
    hasty = make(max_batch_size=4, batch_timeout_micros=1_000)
    assert Call(hasty, [1]).right() and graph.sizes == [4, 1]


def test_batches_are_padded_to_allowed_sizes(make, graph):
    batcher = make(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    assert [Call(batcher, [5] * rows).right() for rows in (1, 2, 3, 5, 8)] == [True] * 5
    assert graph.sizes == [2, 2, 4, 8, 8]


def test_requests_without_rows_run_at_once(make, graph):
    batcher = make(max_batch_size=4, batch_timeout_micros=10_000_000, allowed_batch_sizes=(2, 4))
    assert Call(batcher, np.zeros((0, 3))).right() and graph.sizes == [0]


def test_other_shapes_and_signatures_run_apart(make, graph):
    batcher = make(max_batch_size=8)
    calls = [occupied(batcher, graph)]
    calls += [Call(batcher, np.ones(s)) for s in ((2, 3), (1, 3), (2, 4))]
    calls += [Call(batcher, [1, 1], key="other")]
    until(lambda: sorted(waiting(batcher)) == [1, 1, 2])
    graph.open.set()
    assert all(call.right() for call in calls)
    assert sorted(graph.sizes[1:]) == [2, 2, 3]
    assert not batcher._queues


def test_threads_run_batches_at_the_same_time(make, graph):
    batcher = make(max_batch_size=1, num_batch_threads=3)
    graph.open.clear()
    calls = [Call(batcher, [i]) for i in range(4)]
    until(lambda: len(graph.sizes) == 3 and waiting(batcher) == [1])
    graph.open.set()
    assert all(call.right() for call in calls)


# -- Failures --------------------------------------------------------------------------------------


def test_one_bad_request_fails_alone(make, graph):
    batcher = make(max_batch_size=64)
    calls = [occupied(batcher, graph)]
    calls += [Call(batcher, [-1] if i in (3, 11) else [i]) for i in range(16)]
    until(lambda: waiting(batcher) == [16])
    graph.open.set()
    for number, call in enumerate(calls[1:]):
        if number in (3, 11):
            call.join(10)
            assert call.error.message == "negative double"
        else:
            assert call.right()
    # Two bad ones among sixteen: far fewer runs than one each would be with larger batches.
    assert len(graph.sizes) <= 1 + 1 + 2 * 2 * 4


@pytest.mark.parametrize(
    ("key", "code", "message"),
    [
        ("scalar", CODE.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"),
        (
            *("short", CODE.FAILED_PRECONDITION),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        ),
        ("crash", CODE.INTERNAL, "ZeroDivisionError: no such luck"),
    ],
)
def test_a_signature_that_cannot_be_batched_fails_and_the_thread_lives(make, key, code, message):
    batcher = make()
    for _ in range(2):
        call = Call(batcher, [1, 2], key=key)
        call.join(10)
        assert (call.error.code, call.error.message) == (code, message)
    assert Call(batcher, [1]).right()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x": np.array(1)}, "Batching Run() input tensors must have at least one dimension"),
        (
            {"x": np.ones(2), "y": np.ones(3)},
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        ({"x": np.ones(5)}, "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_requests_that_cannot_be_batched(make, arrays, message):
    batcher = make(max_batch_size=4)
    assert refused(CODE.INVALID_ARGUMENT, batcher.run, "double", arrays) == message


def test_a_full_queue_refuses(make, graph):
    batcher = make(max_batch_size=2, max_enqueued_batches=2)
    calls = [occupied(batcher, graph)]
    for rows, queued in ((2, [1]), (1, [1, 1])):
        calls.append(Call(batcher, [7] * rows))
        until(lambda queued=queued: waiting(batcher) == queued)
    message = refused(CODE.UNAVAILABLE, batcher.run, "double", {"x": np.ones(2, np.float32)})
    assert message == "The batch scheduling queue to which this task was submitted is full"
    # One more row fits into the batch that is open.
    calls.append(Call(batcher, [8]))
    until(lambda: waiting(batcher) == [1, 2])
    graph.open.set()
    assert all(call.right() for call in calls)


def test_a_request_that_is_too_late_leaves_the_queue(make, graph):
    batcher = make(max_batch_size=4, max_enqueued_batches=1)
    first = occupied(batcher, graph)
    late = Call(batcher, [1, 2, 3, 4], timeout=0.05)
    late.join(10)
    assert late.error.code == CODE.DEADLINE_EXCEEDED
    assert waiting(batcher) == [] and not batcher._queues
    # Its place is free again, and the others of its batch stay.
    calls = [Call(batcher, [5, 5]), Call(batcher, [6], timeout=0.05)]
    calls[1].join(10)
    assert calls[1].error.code == CODE.DEADLINE_EXCEEDED
    calls[1] = Call(batcher, [7, 7])
    until(lambda: waiting(batcher) == [2])
    graph.open.set()
    assert first.right() and all(call.right() for call in calls)
    assert graph.sizes == [1, 4]


def test_a_request_that_is_too_late_while_it_runs(make, graph):
    batcher = make()
    call = occupied(batcher, graph, timeout=0.05)
    call.join(10)
    assert call.error.code == CODE.DEADLINE_EXCEEDED
    graph.open.set()
    assert Call(batcher, [1]).right()


def test_closing_cancels_what_waits_and_finishes_what_runs(make, graph):
    batcher = make()
    running, queued = occupied(batcher, graph), Call(batcher, [1])
    until(lambda: waiting(batcher) == [1])
    batcher.close()
    queued.join(10)
    assert queued.error.code == CODE.CANCELLED
    graph.open.set()
    assert running.right()
    refused(CODE.CANCELLED, batcher.run, "double", {"x": np.ones(1)})


# -- Batched models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return serving_models.write_version(tmp_path_factory.mktemp("models") / "tiny", 1)


@pytest.fixture(scope="module")
def batched(version):
    parameters = BatchingParameters(
        max_batch_size=8,
        batch_timeout_micros=500,
        max_enqueued_batches=100,
        num_batch_threads=2,
        allowed_batch_sizes=(1, 4, 8),
    )
    servable = Servable.load("tiny", 1, version, batching=parameters)
    yield servable
    servable.close()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 2), max_size=8), min_size=1, max_size=12
    )
)
def test_batched_answers_equal_unbatched_ones(batched, requests):
    answers = [None] * len(requests)

    def call(number):
        x = np.float32(requests[number]).reshape(-1, 2)
        answers[number] = batched.run("linear", {"x": x}, timeout=10)["y"]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for rows, answer in zip(requests, answers, strict=True):
        x = np.float32(rows).reshape(-1, 2)
        np.testing.assert_array_equal(answer, serving_models.linear(x, bias=10))


def test_a_broken_image_fails_its_own_request(batched):
    images = [b"no image" if number == 5 else serving_models.png(number) for number in range(12)]
    outcomes = [None] * len(images)

    def call(number):
        image = np.array([images[number]], object)
        try:
            outcomes[number] = batched.run("", {"image_bytes": image}, ["probabilities"])
        except ServingError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for number, outcome in enumerate(outcomes):
        if number == 5:
            assert outcome.code == CODE.INVALID_ARGUMENT
            assert outcome.message.startswith("Unknown image file format.")
        else:
            expected = serving_models.probabilities(serving_models.pixels(number))
            np.testing.assert_allclose(outcome["probabilities"], [expected], atol=1e-6)


def test_what_the_signature_refuses_is_not_enqueued(batched):
    refused(CODE.INVALID_ARGUMENT, batched.run, "linear", {"x": np.float32([[1]])})
    refused(CODE.FAILED_PRECONDITION, batched.run, "scalar_output", {"x": np.float32([1])})
    refused(CODE.INVALID_ARGUMENT, batched.run, "linear", {"x": np.zeros((9, 2), np.float32)})
    refused(CODE.DEADLINE_EXCEEDED, batched.run, "slow", {"seconds": np.float32([20])}, timeout=0.1)


# -- batching.config -------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path):
    path = tmp_path / "batching.config"
    path.write_text("""
        # A comment.
        max_batch_size { value: 32 }
        batch_timeout_micros { value: 5000 }
        max_enqueued_batches { value: 64 }
        num_batch_threads { value: 3 }
        thread_pool_name { value: "pool" }
        allowed_batch_sizes: 1
        allowed_batch_sizes: [8, 32]
        pad_variable_length_inputs: false
    """)
    assert batching_config.read(path) == BatchingParameters(32, 5000, 64, 3, (1, 8, 32))
    path.write_text("")
    assert batching_config.read(path) == BatchingParameters()
    assert BatchingParameters().max_batch_size == 1000
    assert BatchingParameters().max_enqueued_batches == 10


def test_the_message_is_the_official_one():
    message = batching_config.BatchingParametersProto(allowed_batch_sizes=[1, 2])
    message.max_batch_size.value = 2
    assert message.DESCRIPTOR.full_name == "tensorflow.serving.BatchingParameters"
    # 1: a message of one varint field; 6: packed varints.
    assert message.SerializeToString() == b"\x0a\x02\x08\x02\x32\x02\x01\x02"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: 32", "max_batch_size"),
        ("max_batchsize { value: 32 }", 'has no field named "max_batchsize"'),
        ("max_batch_size { value: 0 }", "max_batch_size: expected 1 or more, got 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros: expected 0 or more, got -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches: expected 1 or more"),
        ("num_batch_threads { value: 0 }", "num_batch_threads: expected 1 or more"),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: [1, 2]",
            "last entry was 2; expected 4",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: [2, 2, 4]",
            "allowed_batch_sizes: expected increasing sizes of 1 or more, got [2, 2, 4]",
        ),
        ("allowed_batch_sizes: 0", "allowed_batch_sizes: expected increasing sizes"),
        ("pad_variable_length_inputs: true", "pad_variable_length_inputs"),
        ("\0", "expected a tensorflow.serving.BatchingParameters"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, expected):
    path = tmp_path / "batching.config"
    path.write_text(text)
    message = refused(CODE.INVALID_ARGUMENT, batching_config.read, path)
    assert message.startswith(f"{path}: ") and expected in message


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    message = refused(CODE.INVALID_ARGUMENT, batching_config.read, tmp_path / "absent")
    assert "No such file" in message
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    refused(CODE.INVALID_ARGUMENT, batching_config.read, tmp_path / "bytes")
