"""The client over both transports, against a server that answers as TensorFlow Serving does."""

import contextlib
import os
import shutil
import ssl
import subprocess
import sys
from concurrent import futures
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from fake_model_servers import (
    LABELS,
    TRANSPORTS,
    Model,
    connected,
    image,
    probabilities,
    serve_grpc,
    serve_rest,
)
from packaging.requirements import Requirement

from serving.client import Client, ClientError
from serving.client.transport import Tensor, VersionStatus

ROOT = Path(__file__).resolve().parents[1]
CODE = grpc.StatusCode


@pytest.fixture
def model():
    return Model()


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
