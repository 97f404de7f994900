"""A model server for the client's tests, over gRPC and REST: it answers as TensorFlow Serving does.

What it sees on an image is told by the image's bytes, so that a test knows the right answer:
`image(7)` makes such bytes and `probabilities(image(7))` what the model says of them.
"""

import base64
import collections
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client import Client

#: For tests of both.
TRANSPORTS = pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])

#: Below this largest probability `abstain` is 1.
ABSTAIN_BELOW = 0.4
LABELS = ("NILM", "LSIL", "HSIL", "SCC")
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def image(number: int) -> bytes:
    return f"image {number}".encode()


def probabilities(data: bytes) -> np.ndarray:
    """float32 [4]; they sum to 1."""
    weights = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)[:4].astype(np.float32) + 1
    return weights / weights.sum()


class Refusal(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


@dataclasses.dataclass
class Model:
    """The one model, `pap_stage2`, and what went wrong with the requests for it.

    Attributes:
        versions: Number of the version of each request to come; the last one stays.
        failures: Status codes for the requests to come; then they are answered.
        delay: Seconds that every prediction takes.
        max_batch: Images a request may hold.
        leave_out: Outputs that the model does not have.
        add: Outputs that it has besides.
    """

    versions: list[int] = dataclasses.field(default_factory=lambda: [3])
    failures: collections.deque = dataclasses.field(default_factory=collections.deque)
    delay: float = 0.0
    max_batch: int = 256
    leave_out: tuple[str, ...] = ()
    add: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    requests: list[dict] = dataclasses.field(default_factory=list)
    headers: list[dict] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def version(self, name, version=None, label=None):
        if name != "pap_stage2":
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})"
            )
        if label not in (None, "", "stable"):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
            )
        return self.versions[0] if version is None else version

    def predict(self, target, signature, images):
        with self.lock:
            self.requests.append({**target, "signature": signature, "images": len(images)})
            if self.failures:
                raise Refusal(self.failures.popleft(), "scripted\n\t [[{{function_node x}}]]")
        version = self.version(**target)
        time.sleep(self.delay)
        if len(images) > self.max_batch:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "request too large")
        if any(data.startswith(b"broken") for data in images):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "Unknown image file format. One of JPEG, PNG, GIF, BMP required.\n\t [[{{x}}]]",
            )
        with self.lock:
            if len(self.versions) > 1:
                self.versions.pop(0)
        return self.outputs(images), version

    def outputs(self, images):
        rows = np.stack([probabilities(data) for data in images])
        found = {
            "probabilities": rows,
            "label": np.array([LABELS[number].encode() for number in rows.argmax(1)], object),
            "class_id": rows.argmax(1),
            "hsil_plus": rows[:, 2:].sum(1),
            "abstain": (rows.max(1) < ABSTAIN_BELOW).astype(np.int64),
        }
        for name in self.leave_out:
            del found[name]
        return found | {name: np.stack([value] * len(images)) for name, value in self.add.items()}

    def signature(self):
        signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
        signature.inputs["image_bytes"].CopyFrom(tensor_info(tf.string, [None]))
        for name, value in self.outputs([b"x"]).items():
            dtype = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
            signature.outputs[name].CopyFrom(tensor_info(dtype, [None, *value.shape[1:]]))
        return signature


def tensor_info(dtype, shape):
    return meta_graph_pb2.TensorInfo(
        dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(shape).as_proto()
    )


class GrpcFake(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, model):
        self.model = model

    def _target(self, spec):
        return {
            "name": spec.name,
            "version": spec.version.value if spec.HasField("version") else None,
            "label": spec.version_label or None,
        }

    def Predict(self, request, context):
        self.model.headers.append(dict(context.invocation_metadata()))
        images = [bytes(each) for each in tf.make_ndarray(request.inputs["image_bytes"])]
        try:
            outputs, version = self.model.predict(
                self._target(request.model_spec), request.model_spec.signature_name, images
            )
        except Refusal as error:
            context.abort(error.code, error.message)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):
        assert list(request.metadata_field) == ["signature_def"]
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        try:
            version = self.model.version(**self._target(request.model_spec))
        except Refusal as error:
            context.abort(error.code, error.message)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        signatures = get_model_metadata_pb2.SignatureDefMap(
            signature_def={"serving_default": self.model.signature()}
        )
        response.metadata["signature_def"].Pack(signatures)
        return response

    def GetModelStatus(self, request, context):
        status = get_model_status_pb2.ModelVersionStatus
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(
            version=self.model.versions[0], state=status.State.AVAILABLE
        )
        failed = response.model_version_status.add(version=1, state=status.State.END)
        failed.status.error_message = "could not be read"
        return response


class RestFake(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else each answer, written in two parts, waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    model: Model

    def do_GET(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body):
        self.model.headers.append(dict(self.headers))
        path = re.fullmatch(
            r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(:predict|/metadata|)",
            self.path,
        )
        name, version, label, verb = path.groups()
        target = {"name": name, "version": version and int(version), "label": label}
        try:
            status, answer = 200, self._result(verb, target, body)
        except Refusal as error:
            status, answer = HTTP_STATUS[error.code], {"error": error.message}
        data = json.dumps(answer, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def _result(self, verb, target, body):
        if verb == ":predict":
            request = json.loads(body)
            images = [
                base64.b64decode(each["b64"], validate=True)
                for each in request["inputs"]["image_bytes"]
            ]
            outputs, _ = self.model.predict(target, request["signature_name"], images)
            return {"outputs": {name: _plain(value) for name, value in outputs.items()}}
        version = self.model.version(**target)
        if not verb:
            status = {"error_code": "OK", "error_message": ""}
            failed = {"error_code": "UNKNOWN", "error_message": "could not be read"}
            versions = [
                {"version": str(version), "state": "AVAILABLE", "status": status},
                {"version": "1", "state": "END", "status": failed},
            ]
            return {"model_version_status": versions}
        signature = self.model.signature()
        return {
            "model_spec": {"name": target["name"], "version": str(version), "signature_name": ""},
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        "serving_default": {
                            "inputs": {n: _info(i) for n, i in signature.inputs.items()},
                            "outputs": {n: _info(i) for n, i in signature.outputs.items()},
                        }
                    }
                }
            },
        }

    def log_message(self, *_):
        pass


def _plain(value):
    if value.dtype == object:
        return [each.decode() for each in value]
    # float32 as the real server writes it: with nine digits.
    return np.vectorize(lambda each: float(f"{each:.9g}"))(value).tolist()


def _info(info):
    return {
        "name": "x:0",
        "dtype": tf.as_dtype(info.dtype).name.join(("DT_", "")).upper()
        if info.dtype != tf.float32.as_datatype_enum
        else "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": ""} for dim in info.tensor_shape.dim],
            "unknown_rank": False,
        },
    }


@contextlib.contextmanager
def serve_grpc(model, port=0, credentials=None):
    """Yields the port."""
    server = grpc.server(
        futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)]
    )
    fake = GrpcFake(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(fake, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
    address = f"localhost:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def serve_rest(model, port=0, context=None, handler=RestFake):
    """Yields the port."""
    server = http.server.ThreadingHTTPServer(
        ("localhost", port), type("Handler", (handler,), {"model": model})
    )
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def connected(model, rest, **options):
    """A client of a server of this process."""
    with (
        (serve_rest if rest else serve_grpc)(model) as port,
        Client(f"localhost:{port}", rest=rest, **options) as client,
    ):
        yield client
