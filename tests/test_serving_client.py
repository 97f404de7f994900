"""The client over both transports, against a server that answers as TensorFlow Serving does."""

import collections
import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from fake_model_servers import (
    LABELS,
    GrpcFake,
    Model,
    image,
    probabilities,
    serve_grpc,
    serve_rest,
)
from google.protobuf import json_format
from packaging.requirements import Requirement
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.client import Client, ClientError, Prediction, transport, wire
from serving.client.transport import Tensor, VersionStatus
from serving.server import tensor_protos

ROOT = Path(__file__).resolve().parents[1]
CODE = grpc.StatusCode
TRANSPORTS = pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])


@pytest.fixture
def model():
    return Model()


@contextlib.contextmanager
def connected(model, rest, **options):
    with (
        (serve_rest if rest else serve_grpc)(model) as port,
        Client(f"localhost:{port}", rest=rest, **options) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def recorded():
    folder = Path(__file__).parent / "recorded"
    return {
        name: json.loads((folder / f"{name}_cases.json").read_text()) for name in ("rest", "grpc")
    }


@TRANSPORTS
def test_predictions_are_the_models_in_order(model, rest):
    images = [image(number) for number in range(20)]
    with connected(model, rest, batch_size=8, version=3) as client:
        found = client.predict(images)
        assert client.predict([]) == []
    truth = [probabilities(data) for data in images]
    np.testing.assert_allclose([each.probabilities for each in found], truth, rtol=1e-7)
    for each, expected in zip(found, truth, strict=True):
        assert each.class_id == expected.argmax() and each.label == LABELS[each.class_id]
        assert each.hsil_plus == pytest.approx(expected[2:].sum(), rel=1e-6)
        assert each.abstain is bool(expected.max() < 0.4) and each.model_version == 3
    assert {each.abstain for each in found} == {True, False}
    assert [request["images"] for request in model.requests] == [8, 8, 4]


@TRANSPORTS
def test_outputs_may_be_absent_or_more(rest):
    model = Model(leave_out=("hsil_plus", "abstain"), add={"heat": np.zeros((2, 2), np.float32)})
    with connected(model, rest) as client:
        (found,) = client.predict([image(1)])
    assert found.hsil_plus is None and found.abstain is None
    assert found.probabilities == pytest.approx(probabilities(image(1)), rel=1e-7)


@TRANSPORTS
def test_a_model_of_another_kind_is_refused(rest):
    with connected(Model(leave_out=("label",)), rest) as client:
        for ask in (client.check, lambda: client.predict([image(1)])):
            with pytest.raises(ClientError, match=r"expected the outputs .*label.* found") as error:
                ask()
            assert error.value.code is CODE.FAILED_PRECONDITION
    model = Model()
    model.outputs = lambda images: {name: v[:1] for name, v in Model().outputs(images).items()}
    with (
        connected(model, rest) as client,
        pytest.raises(ClientError, match="an answer for each of 2 images"),
    ):
        client.predict([image(1), image(2)])


@TRANSPORTS
def test_metadata_and_status_are_told_alike(model, rest):
    with connected(model, rest) as client:
        metadata, status = client.check(), client.status()
    assert (metadata.model, metadata.version) == ("pap_stage2", 3)
    signature = metadata.signatures["serving_default"]
    assert signature.inputs == {"image_bytes": Tensor("DT_STRING", (None,))}
    assert signature.outputs == {
        "probabilities": Tensor("DT_FLOAT", (None, 4)),
        "label": Tensor("DT_STRING", (None,)),
        "class_id": Tensor("DT_INT64", (None,)),
        "hsil_plus": Tensor("DT_FLOAT", (None,)),
        "abstain": Tensor("DT_INT64", (None,)),
    }
    assert status == [
        VersionStatus(3, "AVAILABLE", ""),
        VersionStatus(1, "END", "could not be read"),
    ]


@TRANSPORTS
@pytest.mark.parametrize("chosen", [{}, {"version": 2}, {"label": "stable"}], ids=str)
def test_version_and_label_reach_the_server(model, rest, chosen):
    with connected(model, rest, signature="other", **chosen) as client:
        (found,) = client.predict([image(1)])
        assert client.metadata().version == chosen.get("version", 3)
    (request,) = model.requests
    assert request == {
        **{"name": "pap_stage2", "version": None, "label": None},
        **{"signature": "other", "images": 1},
        **chosen,
    }
    assert found.model_version == chosen.get("version", 3)


def test_rest_names_a_version_only_where_none_came_between():
    model = Model(versions=[1, 2])
    with connected(model, rest=True) as client:
        # Version 1 answered the first question after the version, version 2 the second.
        found = [client.predict([image(1)])[0].model_version for _ in range(2)]
    assert found == [None, 2]
    model = Model(versions=[1, 2])
    with connected(model, rest=False) as client:
        assert [client.predict([image(1)])[0].model_version for _ in range(2)] == [1, 2]


@TRANSPORTS
def test_unavailable_is_tried_again(model, rest, monkeypatch):
    monkeypatch.setattr(transport, "_FIRST_DELAY_SECONDS", 0.01)
    model.failures.extend([CODE.UNAVAILABLE] * 2)
    with connected(model, rest) as client:
        assert len(client.predict([image(1)])) == 1
        assert len(model.requests) == 3
        model.failures.extend([CODE.UNAVAILABLE] * 5)
        with pytest.raises(ClientError, match=r"^UNAVAILABLE: scripted$") as error:
            client.predict([image(1)])
    assert re.search(r" \(5 attempts in \d+\.\d s\)$", error.value.message)
    assert len(model.requests) == 8


@TRANSPORTS
@pytest.mark.parametrize(
    "code",
    [
        CODE.INVALID_ARGUMENT,
        CODE.NOT_FOUND,
        CODE.RESOURCE_EXHAUSTED,
        CODE.INTERNAL,
        CODE.UNIMPLEMENTED,
        CODE.UNAUTHENTICATED,
        CODE.DEADLINE_EXCEEDED,
    ],
    ids=lambda code: code.name,
)
def test_nothing_else_is_tried_again(model, rest, code):
    model.failures.append(code)
    with connected(model, rest, batch_size=2) as client, pytest.raises(ClientError) as error:
        client.predict([image(1)])
    assert error.value.code is code and len(model.requests) == 1


@TRANSPORTS
def test_an_error_names_its_images(model, rest):
    with connected(model, rest, batch_size=2) as client, pytest.raises(ClientError) as error:
        client.predict([image(1), image(2), image(3), b"broken", image(5)])
    assert error.value.images == (2, 3) and error.value.code is CODE.INVALID_ARGUMENT
    # One line, although the server's message has two.
    assert str(error.value) == (
        "INVALID_ARGUMENT: Unknown image file format. One of JPEG, PNG, GIF, BMP required."
    )


@TRANSPORTS
def test_a_server_that_is_slow_meets_the_deadline(rest):
    with (
        connected(Model(delay=2.0), rest, timeout=0.3) as client,
        pytest.raises(ClientError, match=r"no answer within 0\.3 s") as error,
    ):
        client.predict([image(1)])
    assert error.value.code is CODE.DEADLINE_EXCEEDED and error.value.images == (0,)


@TRANSPORTS
def test_repetitions_end_with_the_deadline(model, rest):
    model.failures.extend([CODE.UNAVAILABLE] * 1000)
    with (
        connected(model, rest, timeout=0.8, retries=900) as client,
        pytest.raises(ClientError) as error,
    ):
        client.predict([image(1)])
    assert error.value.code is CODE.UNAVAILABLE and 2 <= len(model.requests) <= 6


@TRANSPORTS
def test_a_server_that_comes_later_is_reached(model, rest):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    with (
        Client(f"localhost:{port}", rest=rest, retries=8) as client,
        futures.ThreadPoolExecutor() as executor,
    ):
        answer = executor.submit(client.predict, [image(1)])
        time.sleep(0.5)
        assert not answer.done()
        with (serve_rest if rest else serve_grpc)(model, port):
            assert len(answer.result(10)) == 1


def test_delays_double_up_to_a_limit_and_differ(monkeypatch):
    delays = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, delay: delays.append(delay))

    def fail(timeout):
        raise ClientError(CODE.UNAVAILABLE, "down")

    for _ in range(40):
        with pytest.raises(ClientError):
            transport.Retrying(6, 1000.0).call(fail)
    delays = np.reshape(delays, (40, 6))
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert (delays <= longest).all() and (delays >= np.array(longest) / 2).all()
    assert (np.ptp(delays, axis=0) > np.array(longest) / 4).all()


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next bytes of `model`, then closes the connection."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.model.popleft())
        self.close_connection = True

    def log_message(self, *_):
        pass


GOOD = json.dumps({"outputs": {"probabilities": [[0.5, 0.5]], "label": ["a"], "class_id": [0]}})


def test_rest_tries_again_before_an_answer_but_not_within_one():
    whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\n\r\n{GOOD}".encode()
    answers = collections.deque(
        [b"", whole, whole[:-10], b"HTTP/1.1 301 Go\r\nLocation: /x\r\n\r\n"]
    )
    answers += [b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 404 No\r\n\r\n<html>\x1b[2J"]
    with (
        serve_rest(answers, handler=Scripted) as port,
        Client(f"localhost:{port}", rest=True, version=1) as client,
    ):
        assert client.predict([b"x"]) == [Prediction((0.5, 0.5), "a", 0, None, None, 1)]
        for code, said in (
            (CODE.UNKNOWN, "IncompleteRead"),
            (CODE.UNKNOWN, "HTTP 301"),
            (CODE.UNKNOWN, "expected an answer as TensorFlow Serving gives it, got '<html>'"),
            (CODE.NOT_FOUND, "HTTP 404: '<html>"),
        ):
            with pytest.raises(ClientError, match=said) as error:
                client.predict([b"x"])
            assert error.value.code is code and str(error.value).isprintable()
    assert not answers


@TRANSPORTS
def test_closing_ends_a_wait(model, rest):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        # Bound, not listening: connections are refused.
        client = Client(f"localhost:{found.getsockname()[1]}", rest=rest, retries=50)
        with futures.ThreadPoolExecutor() as executor:
            answer = executor.submit(client.predict, [image(1)])
            time.sleep(0.5)
            client.close()
            with pytest.raises(ClientError):
                answer.result(2)


@TRANSPORTS
def test_threads_share_a_client(model, rest):
    with connected(model, rest, batch_size=2) as client, futures.ThreadPoolExecutor(8) as executor:
        batches = [[image(10 * n), image(10 * n + 1), image(10 * n + 2)] for n in range(40)]
        for batch, found in zip(batches, executor.map(client.predict, batches), strict=True):
            truth = [probabilities(data) for data in batch]
            np.testing.assert_allclose([each.probabilities for each in found], truth, rtol=1e-7)


@pytest.mark.parametrize(
    "wrong",
    [{"version": 1, "label": "a"}, {"timeout": 0}, {"retries": -1}, {"batch_size": 0}],
    ids=str,
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Client("localhost:1", rest=True, **wrong)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, found = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", found),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return key, found


@TRANSPORTS
def test_token_travels_encrypted_to_a_trusted_server_only(
    model, rest, certificate, monkeypatch, tmp_path
):
    # Python's requests would let a .netrc take the place of a token in a header.
    (tmp_path / "netrc").write_text("machine localhost login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # And what this names, the place of the authorities to trust.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
    key, found = certificate
    if rest:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(found, key)
        server = serve_rest(model, context=context)
    else:
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), found.read_bytes())])
        server = serve_grpc(model, credentials=credentials)
    with server as port:
        with Client(f"localhost:{port}", rest=rest, tls=found, token="secret") as client:
            assert len(client.predict([image(1)])) == 1
        seen = {name.lower(): value for name, value in model.headers[-1].items()}
        assert seen["authorization"] == "Bearer secret"
        count = len(model.headers)
        for tls in (True, False):
            with (
                Client(f"localhost:{port}", rest=rest, tls=tls, token="x", retries=0) as client,
                pytest.raises(ClientError) as error,
            ):
                client.predict([image(1)])
            assert error.value.code is CODE.UNAVAILABLE
        assert len(model.headers) == count


def distributions(line, found):
    """Adds the distribution that a requirement names, and all that it needs, by name."""
    needed = Requirement(line)
    with contextlib.suppress(metadata.PackageNotFoundError):
        distribution = metadata.distribution(needed.name)
        if (needed.name, *needed.extras) not in found:
            found[needed.name, *needed.extras] = distribution
            for further in distribution.requires or ():
                marker = Requirement(further).marker
                extras = needed.extras or {""}
                if not marker or any(marker.evaluate({"extra": extra}) for extra in extras):
                    distributions(further.partition(";")[0], found)


def test_pap_predict_needs_no_more_than_the_requirements_of_the_client(model, tmp_path):
    """It answers where nothing else is installed: no TensorFlow, Keras, TFDS or OpenCV."""
    (tmp_path / "a.png").write_bytes(image(1))
    found = {}
    for line in (ROOT / "serving/client/requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            distributions(line, found)
    for distribution in found.values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (tmp_path / "site").mkdir(exist_ok=True)
            (tmp_path / "site" / name).unlink(missing_ok=True)
            (tmp_path / "site" / name).symlink_to(distribution.locate_file(name))
    assert not (tmp_path / "site" / "tensorflow").exists()
    places = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    # -S: without the packages of this environment.
    pap = [sys.executable, "-S", "-m", "replication.pap"]

    def said(*line):
        return subprocess.run(
            [*pap, *line],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": places},
            cwd=tmp_path,
        )

    with serve_grpc(model) as grpc_port, serve_rest(model) as rest_port:
        for server in ([f"--server=localhost:{grpc_port}"], [f"--server=localhost:{rest_port}"]):
            server += ["--rest"] if server[0].endswith(str(rest_port)) else []
            done = said("predict", *server, "a.png")
            assert done.returncode == 0, done.stderr
            assert "1 of 1 images named" in done.stdout
    for line, missing in (("run", "tensorflow"), ("search", "tensorflow")):
        done = said(line)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert f"{missing} is not installed; pap doctor" in done.stderr


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


@pytest.mark.parametrize("rest", [False, True])
def test_the_first_question_is_repeated_where_somebody_listens(rest):
    def fail(message):
        raise ClientError(grpc.StatusCode.UNAVAILABLE, message)

    with (
        (serve_rest if rest else serve_grpc)(Model()) as port,
        Client(f"localhost:{port}", rest=rest) as client,
    ):
        answer, asked = client._transport.metadata, []

        def metadata(target, timeout):
            asked.append(target)
            return answer(target, timeout) if len(asked) > 1 else fail("connection timed out")

        client._transport.metadata = metadata
        client.check()
        assert len(asked) == 2
        client._transport.metadata = lambda *_: fail("Connection refused")
        with pytest.raises(ClientError, match=r"refused \(1 attempt in"):
            client.check()
