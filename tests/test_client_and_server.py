"""The client against the embedded server, which runs with what `serving.deploy` wrote."""

from concurrent import futures

import grpc
import pytest
import serving_models
from google.protobuf import text_format

from serving.client import Client, ClientError
from serving.deploy.render import Settings, render
from serving.server import batching_config, fronts, monitoring_config
from serving.store import model_config

TRANSPORTS = pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Makes clients of a server with versions 1 (stable) and 2."""
    folder = tmp_path_factory.mktemp("served")
    serving_dir = folder / "models" / "tiny"
    for version in (1, 2):
        serving_models.write_version(serving_dir, version)
    config = model_config.ModelConfig(serving_dir)
    config.assign("canary", 2)
    config.assign("stable", 1)
    files = render(Settings(serving_dir, folder, "", max_batch_size=8))
    (folder / "batching.config").write_text(files["batching.config"])
    monitoring = text_format.Parse(files["monitoring.config"], monitoring_config.MonitoringConfig())
    with fronts.running(
        serving_dir,
        batching=batching_config.read(folder / "batching.config"),
        prometheus_path=monitoring.prometheus_config.path,
        page=False,
    ) as server:
        ports = {False: server.grpc_port, True: server.rest_port}

        def connect(rest, **options):
            return Client(f"127.0.0.1:{ports[rest]}", rest=rest, model="tiny", **options)

        yield connect


@TRANSPORTS
@pytest.mark.parametrize(
    ("chosen", "version"), [({}, 2), ({"label": "stable"}, 1), ({"version": 1}, 1)], ids=str
)
def test_answers_are_the_models(client, rest, chosen, version):
    with client(rest, batch_size=5, **chosen) as asked:
        assert asked.check().version == version
        assert {found.version: found.state for found in asked.status()}[version] == "AVAILABLE"
        with futures.ThreadPoolExecutor(4) as executor:
            batches = [[serving_models.png(n + k) for k in range(7)] for n in range(0, 70, 7)]
            answers = [found for batch in executor.map(asked.predict, batches) for found in batch]
    for number, found in enumerate(answers):
        truth = serving_models.probabilities(serving_models.pixels(number))
        assert found.probabilities == pytest.approx(truth, rel=1e-5)
        assert found.label == serving_models.LABELS[found.class_id]
        assert found.hsil_plus == pytest.approx(truth[2] + truth[3], rel=1e-5)
        assert found.abstain is (max(found.probabilities) < serving_models.ABSTAIN_BELOW)
        assert found.model_version == version


@TRANSPORTS
def test_errors_are_the_servers(client, rest):
    png = serving_models.png()
    bad, none = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    for options, images, code, said in (
        ({}, [png, b"no image"], bad, "Unknown image file format"),
        ({}, [png] * 9, bad, "maximum input batch size 8"),
        ({"version": 7}, [png], none, "Servable not found for request: Specific(tiny, 7)"),
    ):
        with client(rest, **options) as asked, pytest.raises(ClientError) as error:
            asked.predict(images)
        assert error.value.code is code and said in str(error.value)
        assert error.value.images == tuple(range(len(images)))
    with client(rest, label="nope") as asked, pytest.raises(ClientError, match="label: nope"):
        asked.check()
    with client(rest, signature="linear") as asked, pytest.raises(ClientError, match="found x"):
        asked.check()
