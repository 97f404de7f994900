"""Replays what a real TensorFlow Serving answered, over the wire, to the embedded server.

Requests and answers were recorded from TensorFlow Serving 2.20.0 with a small model. Statuses and
values must be equal; of an error's text the first clause, up to a colon, comma or full stop. What
the embedded server answers otherwise, on purpose, is named in `INTENDED`.
"""

import base64
import http.client
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from serving_models import first_clause
from tensorflow.python.framework import test_util
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from serving.server import fronts

RECORDED = Path(__file__).parent / "recorded"

ABORTED = "The real server's process ends; here it is an INVALID_ARGUMENT, and the server lives."
CHECKED_SHAPE = "Shapes are compared with the signature before the graph runs."
EMPTY_BODY = "The real server's 400 has an empty body that calls itself JSON."

#: Intended differences: case -> (reason, the first clause here).
INTENDED = {
    "REST 4": (CHECKED_SHAPE, "Input image_bytes has the shape []"),
    "REST 9": (ABORTED, "Input image has the shape [1,3]"),
    "REST 48": (ABORTED, "Input image has the shape [1,3]"),
    "REST 50": (
        ABORTED + " A number that a float32 does not hold is refused, not served as infinity.",
        "Failed to process element",
    ),
    "REST 53": (EMPTY_BODY, "Failed to convert version"),
}

#: Without oneDNN, which TensorFlow turns on by itself on some processors alone, a batch of no
#: images runs through this model to its end; the recorded server had oneDNN.
WITHOUT_ONEDNN = {"REST 5": (200, {"outputs": {"class_id": [], "label": [], "probabilities": []}})}

RESPONSES = {
    "Predict": predict_pb2.PredictResponse,
    "GetModelStatus": get_model_status_pb2.GetModelStatusResponse,
}


def recorded(name):
    return json.loads((RECORDED / name).read_text())


def identity(case):
    return f"gRPC {case['name']}" if "name" in case else f"REST {case['id']}"


@pytest.fixture(scope="module")
def server():
    # The recorded server had neither.
    with fronts.running(RECORDED / "models" / "tiny", page=False, prometheus_path=None) as running:
        yield running


def rest(server, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()
    finally:
        connection.close()


def equal(given, expected):
    """The same JSON, numbers with a fraction to 2e-6."""
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for key in expected:
            equal(given[key], expected[key])
    elif isinstance(expected, list):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            equal(one, other)
    elif isinstance(expected, float):
        np.testing.assert_allclose(given, expected, rtol=0, atol=2e-6)
    else:
        assert given == expected and type(given) is type(expected)


def same_text(case, given, expected):
    expected = first_clause(expected)
    if identity(case) in INTENDED:
        _, expected = INTENDED[identity(case)]
    assert first_clause(given) == expected


@pytest.mark.parametrize("case", recorded("rest_cases.json"), ids=identity)
def test_rest_answers_as_recorded(server, case):
    status, content_type, text = rest(server, case["method"], case["path"], case["body"])
    if case["status"] == "ABORT":
        assert (status, content_type) == (400, "application/json")
        same_text(case, json.loads(text)["error"], "")
        assert rest(server, "GET", "/v1/models/tiny", "")[0] == 200
        return
    if identity(case) in WITHOUT_ONEDNN and not test_util.IsMklEnabled():
        assert (status, json.loads(text)) == WITHOUT_ONEDNN[identity(case)]
        return
    assert (status, content_type) == (case["status"], case["content_type"])
    if content_type == "text/html" or case["method"] == "HEAD":
        assert text == case["response"]
    elif status == 200:
        equal(json.loads(text), json.loads(case["response"]))
    else:
        expected = json.loads(case["response"] or '{"error": ""}')
        assert json.loads(text).keys() == expected.keys() == {"error"}
        same_text(case, json.loads(text)["error"], expected["error"])


@pytest.mark.parametrize("case", recorded("grpc_cases.json"), ids=identity)
def test_grpc_answers_as_recorded(server, case):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(f"/tensorflow.serving.{case['service']}/{case['method']}")
        try:
            answer, code, details = call(base64.b64decode(case["request"]), timeout=60), "OK", ""
        except grpc.RpcError as error:
            answer, code, details = None, error.code().name, error.details()
    assert code == case["code"]
    same_text(case, details, case["details"])
    if code != "OK":
        return
    if case["method"] == "GetModelMetadata":
        response = get_model_metadata_pb2.GetModelMetadataResponse.FromString(answer)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(signatures)
        given = {
            "model_spec": json_format.MessageToDict(
                response.model_spec, preserving_proto_field_name=True
            ),
            "signatures": sorted(signatures.signature_def),
        }
    else:
        given = json_format.MessageToDict(
            RESPONSES[case["method"]].FromString(answer), preserving_proto_field_name=True
        )
    equal(given, case["response"])


def test_every_intended_difference_is_one(server):
    cases = {
        identity(case): case for name in ("rest", "grpc") for case in recorded(f"{name}_cases.json")
    }
    assert INTENDED.keys() <= cases.keys()
    for name, (_, text) in INTENDED.items():
        case = cases[name]
        known = case["details"] if "details" in case else case["response"]
        assert json.dumps(text)[1:-1] not in known
