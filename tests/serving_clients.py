"""Talks to a server under test: REST by http.client, gRPC by the official stubs."""

import contextlib
import http.client
import json
import time

import grpc
import numpy as np
import pytest
import serving_models
from tensorflow_serving.apis import prediction_service_pb2_grpc

PREDICT = "/v1/models/tiny:predict"


def rest(server, method, path, body=None, headers=None, context=None):
    """Status, headers, and the body: read, where it is JSON; a dict is sent as JSON."""
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    options = {"context": context} if context else {}
    connection = kind("127.0.0.1", server.rest_port, timeout=60, **options)
    try:
        text = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, text, headers or {})
        answer = connection.getresponse()
        found = answer.read()
        if found and answer.headers["content-type"] == "application/json":
            found = json.loads(found)
        return answer.status, answer.headers, found
    finally:
        connection.close()


@contextlib.contextmanager
def stub(server, service=prediction_service_pb2_grpc.PredictionServiceStub, credentials=None):
    """A stub of one of the server's services."""
    address = f"127.0.0.1:{server.grpc_port}"
    if credentials is None:
        channel = grpc.insecure_channel(address)
    else:
        channel = grpc.secure_channel(address, credentials)
    with channel:
        yield service(channel)


def linear(x, **spec):
    """A PredictRequest of `linear`."""
    return serving_models.predict_request("tiny", "linear", x=np.float32(x), **spec)


def linear_body(*rows):
    return {"signature_name": "linear", "instances": rows}


def slow(seconds):
    """A PredictRequest that takes that long."""
    return serving_models.predict_request("tiny", "slow", seconds=np.float32([seconds]))


def slow_body(seconds):
    return {"signature_name": "slow", "instances": [seconds]}


def failed(code, call, *arguments, **options):
    """The details of the RpcError with this code."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    assert caught.value.code() == code, caught.value.details()
    return caught.value.details()


def eventually(condition, seconds=20):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
