"""Whatever is sent, the server lives, its memory stays bounded and every answer is a clean one.

pytest tests/test_hostile.py --thorough          # 100,000 inputs
"""

import http.client
import json
import math
import socket

import grpc
import hostile
import numpy as np
import psutil
import pytest
from commands import start
from served import served
from tensorflow_serving.apis import predict_pb2

NAME = "pap_stage2"
PREDICT = "/tensorflow.serving.PredictionService/Predict"

#: Bytes that the process may grow by after it has seen some of everything.
GROWTH = 200 * 2**20

CLEAN_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
CLEAN_STATUSES = {400, 404, 405, 413, 414, 429, 431, 501}


@pytest.fixture(scope="module")
def server(exported_tiny):
    flags = ("--enable_batching", "--max_request_bytes=2000000")
    with served(exported_tiny, *flags, start=start) as running:
        yield running


@pytest.fixture(scope="module")
def call(server):
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    yield channel.unary_unary(PREDICT)
    channel.close()


def over_grpc(call, body, allowed=frozenset()):
    try:
        answer = predict_pb2.PredictResponse.FromString(call(body, timeout=60))
    except grpc.RpcError as error:
        assert error.code() in CLEAN_CODES | allowed, (error.code(), error.details(), body[:200])
        assert "Traceback" not in error.details()
        return error.code()
    probabilities = answer.outputs.get("probabilities")
    if probabilities is not None:
        assert all(math.isfinite(value) for value in probabilities.float_val)
    return grpc.StatusCode.OK


def over_rest(server, connection, method, path, body):
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status in CLEAN_STATUSES | {200}, (answer.status, text[:300], body[:200])
    if answer.status != 200 and answer.headers["content-type"] == "application/json":
        assert set(json.loads(text)) == {"error"} if method != "HEAD" else not text
    assert b"Traceback" not in text
    return answer.status


@pytest.mark.timeout(3600)
def test_hostile_inputs(server, call, pytestconfig):
    count = 100_000 if pytestconfig.getoption("thorough") else 1_000
    rng = np.random.default_rng(0)
    process = psutil.Process(server.process.pid)
    honest = hostile.images(rng)
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    answers, settled = {}, 0
    for number in range(count):
        data = hostile.mutated(rng, honest[rng.integers(len(honest))])
        signature = str(rng.choice(["", "explain", "features"]))
        match rng.integers(0, 6):
            case 0 | 1:
                kind, found = "image", over_grpc(call, hostile.image_request(NAME, data, signature))
            case 2:
                kind, body = "image over REST", hostile.image_body(data, signature)
                found = over_rest(server, connection, "POST", hostile.PATH.format(NAME), body)
            case 3:
                kind, body = "JSON", hostile.json_body(rng)
                found = over_rest(server, connection, "POST", hostile.PATH.format(NAME), body)
            case 4:
                kind, body = "tensor", hostile.tensor_request(rng, NAME, data)
                if rng.integers(0, 3):
                    found = over_grpc(call, body)
                else:
                    # gRPC itself answers what is no message at all.
                    broken = hostile.mutated(rng, body)
                    found = over_grpc(call, broken, frozenset({grpc.StatusCode.INTERNAL}))
            case 5:
                kind = "URL"
                method = str(rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]))
                path = hostile.url(rng, NAME)
                found = over_rest(
                    server, connection, method, path, data if method == "POST" else b""
                )
        answers.setdefault(kind, {}).setdefault(str(found), 0)
        answers[kind][str(found)] += 1
        if number == min(count // 3, 2_000):
            settled = process.memory_info().rss
    grown = process.memory_info().rss - settled
    print(json.dumps(answers, indent=1), f"grown by {grown / 2**20:.0f} MiB")
    assert server.process.poll() is None
    assert grown < GROWTH
    # Honest requests are answered as before, and the hostile ones were of every kind.
    assert over_grpc(call, hostile.image_request(NAME, honest[0])) == grpc.StatusCode.OK
    assert set(answers) == {"image", "image over REST", "JSON", "tensor", "URL"}
    for kind in ("image", "image over REST"):
        assert {"StatusCode.OK", "200"} & answers[kind].keys(), "none of the changed ones was whole"


def test_a_body_above_the_limit_is_not_read(server, call):
    status, _, body = server.rest("POST", hostile.PATH.format(NAME), b" " * 2_100_000)
    assert status == 413 and b"error" in body
    with pytest.raises(grpc.RpcError) as raised:
        call(b"\0" * 2_100_000)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_sends_half_a_request_stops_no_other(server, call):
    sockets = []
    for _ in range(50):
        half = socket.create_connection(("127.0.0.1", server.rest_port))
        half.sendall(
            b"POST /v1/models/x:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
        )
        sockets.append(half)
    honest = hostile.images(np.random.default_rng(0))[0]
    assert over_grpc(call, hostile.image_request(NAME, honest)) == grpc.StatusCode.OK
    assert server.rest("POST", hostile.PATH.format(NAME), hostile.image_body(honest))[0] == 200
    for half in sockets:
        half.close()
