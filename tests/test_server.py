"""The embedded server over the wire: routes, answers, limits."""

import base64
import concurrent.futures
import contextlib
import socket

import grpc
import numpy as np
import pytest
import serving_models
from serving_clients import (
    PREDICT,
    eventually,
    failed,
    linear,
    linear_body,
    rest,
    slow,
    slow_body,
    stub,
)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
)

from serving.server import fronts
from serving.server.batching_config import BatchingParameters
from serving.server.rest import front as rest_front
from serving.server.rest import http_server


@pytest.fixture(scope="module")
def serving_dir(tmp_path_factory):
    """One version, bias 10; tests that publish copy it."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    serving_models.write_version(folder, 1)
    return folder


@pytest.fixture(scope="module")
def server(serving_dir):
    with fronts.running(serving_dir, page=False, max_request_bytes=200_000) as running:
        yield running


# -- What the protocol promises, restated ----------------------------------------------------------


def test_predict_over_rest(server):
    rows = linear_body([1, 2], [3.5, 4])
    assert rest(server, "POST", PREDICT, rows)[2] == {"predictions": [13.0, 17.5]}
    columns = {"signature_name": "linear", "inputs": {"x": [[1, 2]]}}
    assert rest(server, "POST", PREDICT, columns)[2] == {"outputs": [13.0]}
    image = serving_models.png(3)
    encoded = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    ((found,),) = rest(server, "POST", PREDICT, encoded)[2].values()
    assert set(found) == {"probabilities", "label", "class_id", "hsil_plus", "abstain"}
    expected = serving_models.probabilities(serving_models.pixels(3))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    broken = {"instances": [{"b64": "aGVsbG8="}]}
    status, _, answer = rest(server, "POST", PREDICT, broken)
    assert status == 400 and answer["error"].startswith("Unknown image file format.")


def test_the_same_over_grpc(server):
    with stub(server) as predictions:
        answer = predictions.Predict(linear([[1, 2], [3.5, 4]]), timeout=30)
        assert list(answer.outputs["y"].float_val) == [13.0, 17.5]
        assert answer.model_spec.version.value == 1
        nope = serving_models.predict_request("tiny", "nope", x=np.float32([[1, 2]]))
        details = failed(grpc.StatusCode.FAILED_PRECONDITION, predictions.Predict, nope)
        assert details == 'Serving signature key "nope" not found.'
        details = failed(
            grpc.StatusCode.NOT_FOUND, predictions.Predict, linear([[1, 2]], version=7)
        )
        assert details == "Servable not found for request: Specific(tiny, 7)"
        failed(
            grpc.StatusCode.UNIMPLEMENTED,
            predictions.MultiInference,
            inference_pb2.MultiInferenceRequest(),
        )


def test_examples_over_both(server):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "tiny", "classify"
    request.input.example_list.examples.append(serving_models.example(0.25, 0.5))
    with stub(server) as predictions:
        (row,) = predictions.Classify(request, timeout=30).result.classifications
    expected = [["NILM", 0.25], ["LSIL", 0.5], ["HSIL", 1.0], ["SCC", 10.0]]
    assert [[entry.label, entry.score] for entry in row.classes] == expected
    body = {"signature_name": "classify", "examples": [{"x": [0.25, 0.5]}]}
    assert rest(server, "POST", "/v1/models/tiny:classify", body)[2] == {"results": [expected]}
    body = {"signature_name": "regress", "examples": [{"x": [0.25, 0.5]}, {"x": [1.5, 1.0]}]}
    assert rest(server, "POST", "/v1/models/tiny:regress", body)[2] == {"results": [10.75, 12.5]}


def test_status_and_metadata(server):
    state = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("", "/versions/1", "/labels/stable"):
        status, headers, found = rest(server, "GET", f"/v1/models/tiny{path}")
        assert (status, found) == (200, {"model_version_status": [state]})
        assert headers["x-content-type-options"] == "nosniff"
    found = rest(server, "GET", "/v1/models/tiny/versions/1/metadata")[2]
    assert found["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
    signature = found["metadata"]["signature_def"]["signature_def"]["linear"]
    assert signature["inputs"]["x"]["tensor_shape"]["dim"][1] == {"size": "2", "name": ""}
    with stub(server) as predictions:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "tiny"
        answer = predictions.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert "linear" in signatures.signature_def


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("POST", "/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
        ("GET", "/v1/models/none", 404, "Could not find any versions of model none"),
        ("GET", "/v1/models/n%6Fne", 404, "Could not find any versions of model none"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/tiny/", 400, "Malformed request: GET /v1/models/tiny/"),
        ("GET", "/v1/models/tiny?a=b", 400, "Malformed request: GET /v1/models/tiny?a=b"),
        ("GET", "/V1/models/tiny", 400, "Malformed request: GET /V1/models/tiny"),
        ("PUT", PREDICT, 400, f"Malformed request: PUT {PREDICT}"),
        ("GET", PREDICT, 400, f"Malformed request: GET {PREDICT}"),
        (
            "POST",
            "/v1/models/tiny/labels/no:predict",
            400,
            "Unrecognized servable version label: no",
        ),
        (
            "GET",
            f"/v1/models/tiny/versions/{'9' * 5000}",
            400,
            f"Failed to convert version: {'9' * 5000} to numeric."[:1024],
        ),
        ("GET", "/v1/models/tiny/versions/0001", 200, None),
    ],
)
def test_routes(server, method, path, status, error):
    body = '{"instances": [1]}' if method == "POST" else None
    found, headers, answer = rest(server, method, path, body)
    assert found == status and headers["content-type"] == "application/json"
    assert error is None or answer == {"error": error}


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/health", "/page/model", "/favicon.ico"])
def test_what_is_elsewhere_is_html(server, path):
    status, headers, body = rest(server, "GET", path)
    assert (status, headers["content-type"]) == (404, "text/html")
    assert b"404 Not Found" in body and rest(server, "HEAD", path)[2] == b""


def test_what_is_no_message_and_no_http(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        assert "deserializ" in failed(grpc.StatusCode.INTERNAL, call, b"\xff\xff", timeout=30)
    with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
        connection.sendall(b"\0\1\2 nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert rest(server, "GET", "/v1/models/tiny")[0] == 200


# -- Limits ----------------------------------------------------------------------------------------


def test_long_requests_are_refused(server):
    long = b" " * 1_000_000
    status, _, answer = rest(server, "POST", PREDICT, long)
    assert status == 413 and "200000 bytes" in answer["error"]
    pieces = (b" " * 50_000 for _ in range(20))
    assert rest(server, "POST", PREDICT, pieces)[0] == 413
    with stub(server) as predictions:
        big = linear(np.zeros((100_000, 2)))
        failed(grpc.StatusCode.RESOURCE_EXHAUSTED, predictions.Predict, big, timeout=30)


def test_endless_headers_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models/tiny HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(OSError):
            for number in range(100):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_clients_that_send_nothing_are_let_go(serving_dir, monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.5)
    with fronts.running(serving_dir, page=False, port=None) as server:
        for sent in (b"", b"POST /v1/models/tiny:pre", post_head(999) + b"{"):
            with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as silent:
                silent.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    assert silent.recv(100) == b""
        # A model that takes longer than a client may is another matter.
        assert rest(server, "POST", PREDICT, slow_body(0.8))[0] == 200


def post_head(length):
    return (
        f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    )


def test_more_requests_than_places_are_refused_at_once(serving_dir):
    with (
        fronts.running(serving_dir, page=False, max_concurrent_requests=1) as server,
        stub(server) as predictions,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(rest, server, "POST", PREDICT, slow_body(1.5))
        eventually(lambda: server.admission.at_work == 1)
        status, headers, answer = rest(server, "POST", PREDICT, slow_body(0))
        assert (status, headers["retry-after"]) == (429, "1") and "limit of 1" in answer["error"]
        failed(grpc.StatusCode.RESOURCE_EXHAUSTED, predictions.Predict, slow(0), timeout=30)
        # What runs no model takes no place.
        assert rest(server, "GET", "/v1/models/tiny/metadata")[0] == 200
        assert first.result()[0] == 200
        assert predictions.Predict(slow(0), timeout=30).outputs["seconds"].float_val == [0]
        # A client that sends slowly has no place yet.
        with socket.create_connection(("127.0.0.1", server.rest_port)) as half:
            half.sendall(post_head(10) + b"{")
            assert rest(server, "POST", PREDICT, slow_body(0))[0] == 200


@pytest.mark.parametrize("batching", [None, BatchingParameters(batch_timeout_micros=1000)])
def test_time_runs_out(serving_dir, batching):
    settings = {"rest_timeout_seconds": 0.3, "batching": batching, "page": False}
    with fronts.running(serving_dir, **settings) as server, stub(server) as predictions:
        # Uncancelled, either would outlast this file's timeout.
        status, _, answer = rest(server, "POST", PREDICT, slow_body(3600))
        assert status == 504 and answer["error"]
        failed(grpc.StatusCode.DEADLINE_EXCEEDED, predictions.Predict, slow(3600), timeout=0.3)
        eventually(lambda: server.admission.at_work == 0)
        call = predictions.Predict.future(slow(0.5), timeout=30)
        eventually(lambda: server.admission.at_work == 1)
        call.cancel()
        eventually(lambda: server.admission.at_work == 0)


def test_large_bodies_are_read_one_after_another(serving_dir):
    large = b" " * rest_front._LARGE_BODY + b'{"signature_name": "linear", "instances": [[1, 2]]}'
    with fronts.running(serving_dir, page=False, rest_timeout_seconds=0.5) as server:
        with rest_front._large_bodies:
            assert rest(server, "POST", PREDICT, large)[0] == 504
            assert rest(server, "POST", PREDICT, linear_body([1, 2]))[0] == 200
        assert rest(server, "POST", PREDICT, large)[2] == {"predictions": [13.0]}


def test_a_surprise_is_logged_and_not_told(server, monkeypatch, caplog):
    def broken(spec):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.manager, "use", broken)
    status, _, answer = rest(server, "POST", PREDICT, linear_body([1, 2]))
    assert (status, answer) == (500, {"error": "Internal error; the server's log has it."})
    with stub(server) as predictions:
        details = failed(
            grpc.StatusCode.INTERNAL, predictions.Predict, linear([[1, 2]]), timeout=30
        )
    assert details == answer["error"]
    assert caplog.text.count("ZeroDivisionError: a secret") == 2


def test_long_messages_are_cut(server):
    request = serving_models.predict_request("tiny", "😀" * 2000, x=np.float32([[1, 2]]))
    with stub(server) as predictions:
        details = failed(grpc.StatusCode.FAILED_PRECONDITION, predictions.Predict, request)
    assert details.startswith('Serving signature key "😀') and len(details.encode()) <= 1024
    body = {"signature_name": "é" * 2000, "instances": [[1, 2]]}
    assert len(rest(server, "POST", PREDICT, body)[2]["error"]) == 1024
