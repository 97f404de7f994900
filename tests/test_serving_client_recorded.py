"""The client against recorded answers of TensorFlow Serving, and against its tensors."""

import http.server
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from fake_model_servers import (
    GrpcFake,
    serve_grpc,
    serve_rest,
)
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.client import Client, ClientError, wire
from serving.client.transport import Tensor, VersionStatus
from serving.server import tensor_protos

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def recorded():
    folder = Path(__file__).parent / "recorded"
    return {
        name: json.loads((folder / f"{name}_cases.json").read_text()) for name in ("rest", "grpc")
    }


def test_answers_of_the_real_server_are_understood_over_rest(recorded):
    """The bytes that TensorFlow Serving 2.20.0 sent, given back by a server for the path asked."""
    cases = recorded["rest"]
    (column,) = (
        case
        for case in cases
        if case["path"] == "/v1/models/tiny:predict"
        and case["response"].lstrip("{ \n").startswith('"outputs"')
        and len(json.loads(case["response"])["outputs"].get("label", ())) == 2
    )

    class Replay(http.server.BaseHTTPRequestHandler):
        def answer(self, case):
            data = case["response"].encode()
            self.send_response(int(case["status"]))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer(next(c for c in cases if (c["method"], c["path"]) == ("GET", self.path)))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert set(body) == {"signature_name", "inputs"}
            found = next((c for c in cases if c["path"] == self.path), None)
            self.answer(column if self.path == "/v1/models/tiny:predict" else found)

        def log_message(self, *_):
            pass

    with serve_rest(None, handler=Replay) as port:
        server = f"localhost:{port}"
        with Client(server, rest=True, model="tiny") as client:
            first, second = client.predict([b"one", b"two"])
            assert first.label == second.label == "class_3" and first.class_id == 3
            assert first.model_version == 1 and first.hsil_plus is None
            assert sum(first.probabilities) == pytest.approx(1, abs=1e-6)
            assert client.check().signatures["serving_default"].inputs["image_bytes"] == Tensor(
                "DT_STRING", (None,)
            )
            assert client.status() == [VersionStatus(1, "AVAILABLE", "")]
        with Client(server, rest=True, model="none") as client:
            for ask, said in (
                (client.metadata, "Servable not found for request: Latest(none)"),
                (client.status, "Could not find any versions of model none"),
                (lambda: client.predict([b"x"]), "Servable not found for request: Latest(none)"),
            ):
                with pytest.raises(ClientError) as error:
                    ask()
                assert error.value.code is CODE.NOT_FOUND and error.value.message == said


def test_answers_of_the_real_server_are_understood_over_grpc(recorded):
    cases = {case["name"]: case for case in recorded["grpc"]}
    answer = json_format.ParseDict(cases["ok bytes"]["response"], predict_pb2.PredictResponse())

    class Replay(GrpcFake):
        def Predict(self, request, context):
            if request.model_spec.HasField("version"):
                case = cases["ver 9"]
                context.abort(CODE[case["code"]], case["details"])
            return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_model_servers.GrpcFake", Replay)
        with serve_grpc(None) as port:
            with Client(f"localhost:{port}", model="tiny") as client:
                (found,) = client.predict([b"x"])
            with (
                Client(f"localhost:{port}", model="tiny", version=9) as client,
                pytest.raises(ClientError, match=r"NOT_FOUND: Servable not found .*tiny, 9"),
            ):
                client.predict([b"x"])
    assert (found.label, found.class_id, found.model_version) == ("class_3", 3, 1)
    np.testing.assert_array_equal(
        np.float32(found.probabilities), answer.outputs["probabilities"].float_val
    )


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[0.5, 2], [3, 4]]),
        np.float64([[7.0, 7.0, 7.0]]),
        np.int32([1, -2]),
        np.int64([[2**40]]),
        np.array([True, False]),
        np.array([[b"HSIL", b"\0\xff"]], object),
        np.float32(3),
    ],
)
def test_tensors_are_read_as_tensorflow_reads_them(values):
    packed = tf.make_tensor_proto(values)
    typed = tensor_pb2.TensorProto()
    tensor_protos.fill(typed, values)
    for proto in (packed, typed):
        read = wire.array(wire.MESSAGES["Tensor"].FromString(proto.SerializeToString()))
        np.testing.assert_array_equal(read, tf.make_ndarray(proto), strict=True)


def test_numbers_have_the_official_names():
    assert [types_pb2.DataType.Name(n) for n in range(len(wire.DTYPES))] == wire.DTYPES
    assert wire.dtype_name(999) == "DT_999"
    states = get_model_status_pb2.ModelVersionStatus.State
    assert {name: n for n, name in wire.STATES.items()} == dict(states.items())
