"""The embedded server from its start to its end: who is let in, what it follows, how it stops."""

import concurrent.futures
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import grpc
import pytest
import serving_models
from commands import command
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import parser
from served import served
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
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)

from serving.server import bearer, config_source, fronts, monitoring_config
from serving.server.errors import ServingError
from serving.store import model_config

METRICS = "/monitoring/prometheus/metrics"
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
QUICK = {"page": False, "poll_seconds": 0.1, "config_poll_seconds": 0.1}


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A version's directory; tests copy it."""
    return serving_models.write_version(tmp_path_factory.mktemp("written") / "tiny", 1)


@pytest.fixture
def serving_dir(version, tmp_path):
    """A serving directory with version 1, that a test may change."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    serving_models.copy_version(version, folder / "1")
    return folder


def publish(serving_dir, number, bias):
    return serving_models.write_version(serving_dir, number, bias=bias, warmup=False)


def y(server, **spec):
    """What `linear` answers to [0, 0]: the bias of the version."""
    with stub(server) as predictions:
        return predictions.Predict(linear([[0, 0]], **spec), timeout=30).outputs["y"].float_val[0]


def health(server, service=""):
    with stub(server, health_pb2_grpc.HealthStub) as checks:
        return checks.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status


# -- Who is let in ---------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


def test_only_who_has_the_token(serving_dir, token_file):
    with fronts.running(serving_dir, token_file=token_file) as server:
        right = {"Authorization": "Bearer s3cret"}
        for wrong in (None, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            for path in ("/v1/models/tiny", METRICS, "/page/model", "/elsewhere"):
                status, headers, answer = rest(server, "GET", path, headers=wrong)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert "Authorization: Bearer" in answer["error"]
            assert rest(server, "POST", PREDICT, linear_body([0, 0]), wrong)[0] == 401
        assert rest(server, "POST", PREDICT, linear_body([0, 0]), right)[2]["predictions"] == [10.0]
        assert rest(server, "GET", "/page/model", headers=right)[0] == 200
        # The page itself asks for the token.
        assert rest(server, "GET", "/")[0] == 200
        with stub(server) as predictions:
            request = linear([[0, 0]])
            failed(grpc.StatusCode.UNAUTHENTICATED, predictions.Predict, request, timeout=30)
            for wrong in ("Bearer no", "s3cret"):
                metadata, code = [("authorization", wrong)], grpc.StatusCode.UNAUTHENTICATED
                failed(code, predictions.Predict, request, timeout=30, metadata=metadata)
            metadata = [("authorization", "bearer s3cret")]
            assert predictions.Predict(request, timeout=30, metadata=metadata).outputs
        with stub(server, model_service_pb2_grpc.ModelServiceStub) as models:
            request = get_model_status_pb2.GetModelStatusRequest()
            failed(grpc.StatusCode.UNAUTHENTICATED, models.GetModelStatus, request, timeout=30)
        assert health(server) == SERVING


@pytest.mark.parametrize("text", ["", "  \n", "two words", "one\ntwo", "é"])
def test_files_that_hold_no_token(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(bearer.TokenError, match=f"^{path}: ") as caught:
        bearer.read(path)
    assert "\n" not in str(caught.value)


def certificate(folder, name="server"):
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths


def test_tls_on_both_ports(serving_dir, tmp_path):
    files = certificate(tmp_path)
    with fronts.running(serving_dir, page=False, tls=files) as server:
        context = ssl.create_default_context(cafile=files[0])
        answer = rest(server, "POST", PREDICT, linear_body([0, 0]), context=context)[2]
        assert answer == {"predictions": [10.0]}
        credentials = grpc.ssl_channel_credentials(files[0].read_bytes())
        with stub(server, credentials=credentials) as predictions:
            assert predictions.Predict(linear([[0, 0]]), timeout=30).outputs
        with stub(server) as predictions:
            failed(grpc.StatusCode.UNAVAILABLE, predictions.Predict, linear([[0, 0]]), timeout=30)
        with pytest.raises(OSError):
            rest(server, "GET", "/v1/models/tiny")


def test_certificates_that_cannot_be_used(serving_dir, tmp_path):
    one, other = certificate(tmp_path, "one"), certificate(tmp_path, "other")
    for files in ((one[0], other[1]), (one[1], one[1]), (one[0], tmp_path / "absent")):
        with (
            pytest.raises(OSError, match="expected a certificate chain and its private key") as e,
            fronts.running(serving_dir, page=False, tls=files),
        ):
            pass
        assert str(files[0]) in str(e.value) and "\n" not in str(e.value)


# -- What it tells of itself -----------------------------------------------------------------------


def test_metrics_have_tensorflow_servings_names(serving_dir):
    with fronts.running(serving_dir, page=False, prometheus_path="/metrics") as server:
        for _ in range(2):
            rest(server, "POST", PREDICT, linear_body([0, 0]))
        rest(server, "POST", PREDICT, linear_body([0]))
        for number in range(3):
            rest(server, "POST", f"/v1/models/{number}:classify", {"examples": [{}]})
        y(server)
        status, headers, text = rest(server, "GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        assert rest(server, "GET", METRICS)[0] == 404
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    lines = text.decode().splitlines()
    for line in (
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="tiny",status="OK"} 3.0',
        ':tensorflow:serving:request_count{model_name="tiny",status="INVALID_ARGUMENT"} 1.0',
        # Clients cannot fill the memory with names.
        ':tensorflow:serving:request_count{model_name="(unknown)",status="NOT_FOUND"} 3.0',
        f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{serving_dir}/1",'
        'status="success"} 1.0',
        "# TYPE :tensorflow:cc:saved_model:load_latency counter",
        "# TYPE :tensorflow:serving:request_latency histogram",
    ):
        assert line in lines
    latency = ":tensorflow:serving:request_latency"
    labels = ("API", "predict"), ("entrypoint", "REST"), ("model_name", "tiny")
    assert values[f"{latency}_count", *labels] == 2
    assert 0 < values[f"{latency}_sum", *labels] < 60e6
    assert values[f"{latency}_bucket", labels[0], labels[1], ("le", "+Inf"), labels[2]] == 2
    labels = ("API", "Predict"), ("entrypoint", "GRPC"), ("model_name", "tiny")
    assert values[f"{latency}_count", *labels] == 1


def test_monitoring_config(tmp_path):
    path = tmp_path / "monitoring.config"
    for text, expected in (
        ("", None),
        ("prometheus_config { enable: true }", METRICS),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
        ('prometheus_config { enable: false path: "/m" }', None),
    ):
        path.write_text(text)
        assert monitoring_config.read(path) == expected
    for text in ('prometheus_config { enable: true path: "m" }', "prometheus { }", "\0"):
        path.write_text(text)
        with pytest.raises(ServingError, match=f"^{path}: ") as caught:
            monitoring_config.read(path)
        assert "\n" not in caught.value.message


def test_health_follows_the_models(tmp_path, version):
    serving_dir = tmp_path / "tiny"
    serving_dir.mkdir()
    service = "tensorflow.serving.PredictionService"
    with (
        fronts.running(serving_dir, **QUICK) as server,
        stub(server, health_pb2_grpc.HealthStub) as checks,
    ):
        assert health(server) == health(server, service) == NOT_SERVING
        assert rest(server, "GET", "/v1/models/tiny")[0] == 404
        watch = checks.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert next(watch).status == NOT_SERVING
        serving_models.copy_version(version, serving_dir / "1")
        assert next(watch).status == SERVING
        assert health(server) == SERVING and y(server) == 10
        shutil.rmtree(serving_dir / "1")
        assert next(watch).status == NOT_SERVING
        failed(
            grpc.StatusCode.NOT_FOUND,
            checks.Check,
            health_pb2.HealthCheckRequest(service="x"),
            timeout=30,
        )


# -- What it follows -------------------------------------------------------------------------------


def test_a_new_version_takes_over_and_no_request_fails(serving_dir):
    with fronts.running(serving_dir, **QUICK) as server:
        ended, found, failures = threading.Event(), [], []

        def ask(one):
            while not ended.is_set():
                try:
                    found.append(one())
                except (grpc.RpcError, OSError, KeyError) as error:
                    failures.append(repr(error))

        def by_rest():
            return rest(server, "POST", PREDICT, linear_body([0, 0]))[2]["predictions"][0]

        threads = [
            threading.Thread(target=ask, args=(one,)) for one in (by_rest, lambda: y(server))
        ]
        for thread in threads:
            thread.start()
        publish(serving_dir, 2, bias=20)
        eventually(lambda: server.available("tiny") == [2])
        time.sleep(0.1)
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures and set(found) == {10, 20}


def test_labels_and_roll_backs_act_on_the_server(serving_dir, caplog):
    config = model_config.ModelConfig(serving_dir)
    with fronts.running(serving_dir, **QUICK) as server:
        with stub(server) as predictions:
            failed(
                grpc.StatusCode.INVALID_ARGUMENT,
                predictions.Predict,
                linear([[0, 0]], label="stable"),
            )
        config.assign("stable", 1)
        eventually(lambda: answers(server, "stable", 10))
        publish(serving_dir, 2, bias=20)
        config.assign("stable", 2)
        eventually(lambda: answers(server, "stable", 20))
        assert server.available("tiny") == [2]
        config.roll_back("stable")
        eventually(lambda: answers(server, "stable", 10))
        config.assign("canary", 2)
        eventually(lambda: answers(server, "canary", 20) and answers(server, "stable", 10))
        assert server.available("tiny") == [1, 2]
        path = "/v1/models/tiny/labels/canary:predict"
        assert rest(server, "POST", path, linear_body([0, 0]))[2]["predictions"] == [20]
        config.path.write_text("model_config_list { config { nam")
        eventually(lambda: "the configuration stays as it was" in caplog.text)
        time.sleep(0.3)
        assert caplog.text.count("the configuration stays as it was") == 1
        eventually(lambda: answers(server, "stable", 10))
        config.path.unlink()
        eventually(lambda: server.available("tiny") == [2])


def answers(server, label, bias):
    try:
        return y(server, label=label) == bias
    except grpc.RpcError:
        return False


def test_a_config_file_with_two_models(serving_dir, tmp_path):
    path = tmp_path / "two.config"
    entry = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" }}'.format
    path.write_text(f"model_config_list {{ {entry('tiny', serving_dir)} }}")
    server = fronts.Server(config_source.ConfigFile(path), fronts.Settings(**QUICK))
    server.start()
    try:
        assert server.manager.model_names() == ["tiny"]
        both = entry("tiny", serving_dir) + entry("second", serving_dir)
        path.write_text(f"model_config_list {{ {both} }}")
        eventually(lambda: server.available("second") == [1])
        # A client may say nothing about it, unless it is allowed to.
        with stub(server, model_service_pb2_grpc.ModelServiceStub) as models:
            request = model_management_pb2.ReloadConfigRequest()
            request.config.CopyFrom(serving_models.model_config(third=serving_dir))
            code, reload = grpc.StatusCode.PERMISSION_DENIED, models.HandleReloadConfigRequest
            assert "--allow_reload_config" in failed(code, reload, request, timeout=60)
        assert server.manager.model_names() == ["tiny", "second"]
    finally:
        server.stop()


def test_a_client_may_reload_below_what_is_served_until_the_file_wins_back(serving_dir, tmp_path):
    elsewhere = serving_models.copy_version(serving_dir / "1", tmp_path / "other" / "1")
    link = serving_dir / "link"
    link.symlink_to(elsewhere.parent)
    settings = {**QUICK, "config_poll_seconds": 3.0, "allow_reload_config": True}
    with (
        fronts.running(serving_dir, **settings) as server,
        stub(server, model_service_pb2_grpc.ModelServiceStub) as models,
    ):

        def reload(**base_paths):
            request = model_management_pb2.ReloadConfigRequest()
            request.config.CopyFrom(serving_models.model_config(**base_paths))
            return models.HandleReloadConfigRequest(request, timeout=60)

        for path in (elsewhere.parent, link, serving_dir / ".." / "other", tmp_path, "gs://bucket"):
            text = failed(grpc.StatusCode.PERMISSION_DENIED, reload, third=path)
            assert "expected a directory below" in text
        failed(grpc.StatusCode.INVALID_ARGUMENT, reload, **{"": serving_dir})
        assert reload(third=serving_dir).status.error_code == 0
        assert server.manager.model_names() == ["third"]
        eventually(lambda: server.manager.model_names() == ["tiny"])
        assert y(server) == 10


# -- How it ends, and as a user starts it ----------------------------------------------------------


def test_requests_at_work_are_finished(serving_dir):
    server = fronts.Server(config_source.ServingDir(serving_dir), fronts.Settings(page=False))
    server.start()
    with concurrent.futures.ThreadPoolExecutor() as pool, stub(server) as predictions:
        first = pool.submit(rest, server, "POST", PREDICT, slow_body(1.0))
        second = predictions.Predict.future(slow(1.0), timeout=30)
        eventually(lambda: server.admission.at_work == 2)
        server.stop()
        assert first.result()[0] == 200 and second.result().outputs
        failed(grpc.StatusCode.UNAVAILABLE, predictions.Predict, linear([[0, 0]]), timeout=30)
        with pytest.raises(ConnectionError):
            rest(server, "GET", "/v1/models/tiny")


def test_requests_that_take_too_long_are_not(serving_dir):
    settings = fronts.Settings(page=False, drain_seconds=1.0)
    server = fronts.Server(config_source.ServingDir(serving_dir), settings)
    server.start()
    with stub(server) as predictions:
        # Waiting for it would outlast this file's timeout.
        endless = predictions.Predict.future(slow(3600), timeout=3600)
        eventually(lambda: server.admission.at_work == 1)
        server.stop()
        with pytest.raises(grpc.RpcError):
            endless.result()


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "tiny").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for ports in ({"port": port}, {"rest_port": port}):
            with (
                pytest.raises(OSError, match=f"^cannot listen on 127.0.0.1, port {port}: Address"),
                fronts.running(tmp_path / "tiny", page=False, **ports),
            ):
                pass


def test_as_a_user_starts_and_stops_it(serving_dir, tmp_path):
    log = tmp_path / "log"
    with served(serving_dir, "--nopage", log=log) as server:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            last = pool.submit(rest, server, "POST", PREDICT, slow_body(1.5))
            time.sleep(0.5)
            # More than one, as `timeout` and impatient users send them.
            for _ in range(50):
                server.process.send_signal(signal.SIGTERM)
            assert last.result()[0] == 200
        assert server.process.wait(timeout=60) == 0
    text = log.read_text()
    for line in (
        "An embedded server that speaks TensorFlow Serving's protocol",
        "for production run tensorflow/serving: python -m serving.deploy",
        "Model tiny, version 1",
        f"gRPC:  127.0.0.1:{server.grpc_port}",
        f"REST:  http://127.0.0.1:{server.rest_port}/v1/models/",
        "Stopping; 1 requests are at work.",
        "Stopped.",
    ):
        assert line in text
    assert "Traceback" not in text and "Page:" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --serving_dir or --model_config_file"),
        (["--serving_dir=/no/such"], "serving.server: --serving_dir=/no/such: no such folder"),
        (["--model_config_file=/no/such"], "--model_config_file=/no/such: no such file"),
        (
            ["--serving_dir=.", "--tls_key=setup.cfg"],
            "expected both --tls_certificate and --tls_key",
        ),
        (
            ["--serving_dir=.", "--batching_parameters_file=setup.cfg"],
            "expected --enable_batching as well",
        ),
        (
            ["--serving_dir=.", "--nogrpc", "--norest"],
            "--nogrpc and --norest: expected one of them",
        ),
        (["--serving_dir=.", "--port=70000"], "70000 is not an integer in the range [0, 65535]"),
    ],
)
def test_flags_that_cannot_be(tmp_path, arguments, message):
    # They are refused before TensorFlow is imported, which takes seconds.
    (tmp_path / "tensorflow.py").write_text("raise ImportError('too early')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = command("serving.server", *arguments, env=environment)
    assert done.returncode != 0 and message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_broken_config_is_one_line(serving_dir, tmp_path):
    (serving_dir.parent / "models.config").write_text("model_config_list { config { nam")
    done = command(
        "serving.server", f"--serving_dir={serving_dir}", "--port=0", "--rest_api_port=0"
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("serving.server: ")]
    assert done.returncode == 1 and "models.config: expected a ModelServerConfig" in line
    assert "Traceback" not in done.stderr
