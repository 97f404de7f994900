"""What `python -m serving.deploy` writes: read back by the official protos and a YAML parser."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import kubernetes_schemas
import pytest
import yaml
from commands import command
from google.protobuf import text_format
from hypothesis import strategies as st
from tensorflow_serving.config import model_server_config_pb2

from serving.deploy.render import FILES, DeployError, Settings, render
from serving.server import batching_config, monitoring_config
from serving.store import model_config

LABELS = {
    "app.kubernetes.io/name": "tensorflow-serving",
    "app.kubernetes.io/instance": "pap-stage2",
}


def settings(**values):
    return Settings(
        **{
            "serving_dir": Path("/srv/models/pap_stage2"),
            "output_dir": Path("/srv/deploy"),
            "command": "python -m serving.deploy",
            **values,
        }
    )


def server_flags(arguments):
    return dict(each.removeprefix("--").split("=", 1) for each in arguments)


def kubernetes(files):
    documents = list(yaml.safe_load_all(files["kubernetes.yaml"]))
    return {document["kind"]: document for document in documents}


def test_configs_are_what_the_server_reads(tmp_path):
    files = render(settings(max_batch_size=48, batch_timeout_micros=700, cpus=2.5))
    (tmp_path / "batching.config").write_text(files["batching.config"])
    assert batching_config.read(tmp_path / "batching.config") == batching_config.BatchingParameters(
        max_batch_size=48,
        batch_timeout_micros=700,
        max_enqueued_batches=100,
        num_batch_threads=3,
    )
    monitoring = text_format.Parse(files["monitoring.config"], monitoring_config.MonitoringConfig())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"
    data = kubernetes(files)["ConfigMap"]["data"]
    assert data == {name: files[name] for name in ("batching.config", "monitoring.config")}


def test_compose_file_runs_the_server_with_its_configs_and_little_else():
    compose = yaml.safe_load(render(settings())["docker-compose.yaml"])
    assert compose.keys() == {"name", "services"} and compose["name"] == "pap-stage2"
    (service,) = compose["services"].values()
    assert service["image"] == "tensorflow/serving:2.20.0"
    assert service["entrypoint"] == ["tensorflow_model_server"]
    assert server_flags(service["command"]) == {
        "port": "8500",
        "rest_api_port": "8501",
        "model_config_file": "/models/models.config",
        "model_config_file_poll_wait_seconds": "10",
        "allow_version_labels_for_unavailable_models": "true",
        "enable_batching": "true",
        "batching_parameters_file": "/etc/tensorflow_serving/batching.config",
        "monitoring_config_file": "/etc/tensorflow_serving/monitoring.config",
        "enable_grpc_healthcheck_service": "true",
        "tensorflow_intra_op_parallelism": "2",
        "tensorflow_inter_op_parallelism": "2",
    }
    mounts = {each["target"]: each for each in service["volumes"]}
    assert {target: each["source"] for target, each in mounts.items()} == {
        "/models": "../models",
        "/etc/tensorflow_serving/batching.config": "./batching.config",
        "/etc/tensorflow_serving/monitoring.config": "./monitoring.config",
    }
    for each in mounts.values():
        assert each["type"] == "bind" and each["read_only"] is True
        assert each["bind"] == {"create_host_path": False}
    assert service["ports"] == [
        {"target": port, "published": str(port), "host_ip": "127.0.0.1", "protocol": "tcp"}
        for port in (8500, 8501)
    ]
    limits = service["deploy"]["resources"]["limits"]
    assert limits == {"cpus": "2.0", "memory": "2048M", "pids": 1024}
    assert service["user"] == "65534:65534" and service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [each.split(":")[0] for each in service["tmpfs"]] == ["/tmp"]
    assert service["init"] is True and service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "10s"
    check = service["healthcheck"]
    assert check["test"] == ["CMD", *settings().health_check()]
    assert (check["interval"], check["timeout"], check["start_period"]) == ("10s", "5s", "120s")


def test_kubernetes_manifest_has_its_parts_and_they_find_one_another():
    files = render(settings(startup_seconds=123, drain_seconds=20, min_replicas=3))
    found = kubernetes(files)
    for document in found.values():
        kubernetes_schemas.check(document)
    assert {kind: document["apiVersion"] for kind, document in found.items()} == {
        "ConfigMap": "v1",
        "Deployment": "apps/v1",
        "Service": "v1",
        "HorizontalPodAutoscaler": "autoscaling/v2",
        "PodDisruptionBudget": "policy/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
    }
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {"matchLabels": LABELS}
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["egress"] == []
    clients, metrics = policy["ingress"]
    assert clients["from"] == [{"podSelector": {"matchLabels": {"pap-stage2-client": "true"}}}]
    # Nobody reaches gRPC but these.
    assert [[port["port"] for port in each["ports"]] for each in (clients, metrics)] == [
        ["grpc", "rest"],
        ["rest"],
    ]
    assert found["Service"]["spec"]["type"] == "ClusterIP"
    assert {document["metadata"]["name"] for document in found.values()} == {"pap-stage2"}
    deployment = found["Deployment"]["spec"]
    pod = deployment["template"]
    assert deployment["selector"] == {"matchLabels": LABELS}
    assert pod["metadata"]["labels"] == LABELS
    assert found["Service"]["spec"]["selector"] == LABELS
    assert found["PodDisruptionBudget"]["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": LABELS},
    }
    autoscaler = found["HorizontalPodAutoscaler"]["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "pap-stage2",
    }
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 6)
    (metric,) = autoscaler["metrics"]
    assert metric["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    # Else every `kubectl apply` would undo what the autoscaler chose.
    assert "replicas" not in deployment

    spec = pod["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["tensorflow_model_server"]
    assert container["args"] == settings().server_arguments()
    assert container["startupProbe"]["exec"] == container["readinessProbe"]["exec"]
    assert container["readinessProbe"]["exec"]["command"] == settings().health_check()
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 125
    assert container["livenessProbe"]["httpGet"] == {
        "path": "/monitoring/prometheus/metrics",
        "port": "rest",
    }
    # Utilization is counted in requests, so that there must be some.
    assert container["resources"] == {
        kind: {"cpu": "2.0", "memory": "2048Mi"} for kind in ("requests", "limits")
    }
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert spec["terminationGracePeriodSeconds"] > 20 and spec["shareProcessNamespace"] is True
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] == 65534
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"] == {
        "claimName": "pap-stage2-models",
        "readOnly": True,
    }
    assert volumes["config"]["configMap"] == {"name": found["ConfigMap"]["metadata"]["name"]}
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert {name: each["mountPath"] for name, each in mounts.items()} == {
        "models": "/models",
        "config": "/etc/tensorflow_serving",
        "tmp": "/tmp",
    }
    assert mounts["models"]["readOnly"] and mounts["config"]["readOnly"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    services = {each["targetPort"]: each["port"] for each in found["Service"]["spec"]["ports"]}
    assert ports == services == {"grpc": 8500, "rest": 8501}


def test_servers_start_again_when_their_configs_change():
    def annotations(**values):
        deployment = kubernetes(render(settings(**values)))["Deployment"]
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations() == annotations()
    assert annotations() != annotations(max_batch_size=65)
    assert annotations(rest_port=9000)["prometheus.io/port"] == "9000"


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}[A-Za-z0-9]", fullmatch=True)
# Any name of a folder, those included that YAML and compose would read as something else.
FOLDERS = st.one_of(
    st.sampled_from(["$HOME", "${x}", "a: b", "#", "'", '"', "- a", "{", "null", "%", "\\n", "é"]),
    st.text(
        st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1
    ).filter(lambda text: text not in (".", "..") and text.isprintable()),
)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
    name=NAMES,
    folder=FOLDERS,
    output=FOLDERS,
    ports=st.lists(st.integers(1024, 65535), min_size=2, max_size=2, unique=True),
    host=st.ip_addresses().map(str),
    cpus=st.floats(0.1, 1024),
    numbers=st.lists(st.integers(1, 10**6), min_size=6, max_size=6),
    replicas=st.tuples(st.integers(1, 99), st.integers(0, 99)),
)
def test_any_settings_arrive_where_they_belong(
    name, folder, output, ports, host, cpus, numbers, replicas
):
    models = Path("/srv") / folder
    given_settings = settings(
        **{"serving_dir": models / name, "output_dir": Path("/srv") / output, "host": host},
        **{"grpc_port": ports[0], "rest_port": ports[1], "cpus": cpus},
        **{"memory_mib": numbers[0], "max_batch_size": numbers[1], "poll_seconds": numbers[2]},
        **{"startup_seconds": numbers[3], "batch_timeout_micros": numbers[4]},
        **{"max_enqueued_batches": numbers[5]},
        **{"min_replicas": replicas[0], "max_replicas": sum(replicas)},
        command=f"python -m serving.deploy --serving_dir='{models / name}'",
    )
    files = render(given_settings)
    for text in files.values():
        assert text.splitlines()[0].endswith(given_settings.command.splitlines()[0])
        assert text.startswith("# Made by: python -m serving.deploy") and text.endswith("\n")
    (service,) = yaml.safe_load(files["docker-compose.yaml"])["services"].values()
    flags = server_flags(service["command"])
    assert [flags["port"], flags["rest_api_port"]] == list(map(str, ports))
    assert flags["model_config_file_poll_wait_seconds"] == str(numbers[2])
    assert [each["published"] for each in service["ports"]] == list(map(str, ports))
    assert [each["host_ip"] for each in service["ports"]] == ["127.0.0.1", host]
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) == cpus and limits["memory"] == f"{numbers[0]}M"
    assert service["healthcheck"]["start_period"] == f"{numbers[3]}s"
    # Compose reads "$$" as a dollar, and a path that begins with a dot relative to its file.
    source = service["volumes"][0]["source"]
    assert not re.search(r"(?<!\$)\$(\$\$)*(?!\$)", source) and source.startswith(".")
    assert os.path.normpath(Path("/srv") / output / source.replace("$$", "$")) == str(models)
    found = kubernetes(files)
    label = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
    assert all(label.fullmatch(each["metadata"]["name"]) for each in found.values())
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert server_flags(container["args"]) == flags
    assert f"/v1/models/{name} HTTP" in container["readinessProbe"]["exec"]["command"][2]
    assert f"/dev/tcp/127.0.0.1/{ports[1]} " in container["readinessProbe"]["exec"]["command"][2]
    probe = container["startupProbe"]
    assert 0 <= probe["failureThreshold"] * probe["periodSeconds"] - numbers[3] < 5
    scale = found["HorizontalPodAutoscaler"]["spec"]
    assert (scale["minReplicas"], scale["maxReplicas"]) == (replicas[0], sum(replicas))
    message = text_format.Parse(files["batching.config"], batching_config.BatchingParametersProto())
    assert message.max_batch_size.value == numbers[1]
    assert message.batch_timeout_micros.value == numbers[4]
    assert message.max_enqueued_batches.value == numbers[5]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"serving_dir": Path("/m/pap stage")}, "--serving_dir='/m/pap stage': expected a last"),
        ({"serving_dir": Path("/m/2pap")}, "begins with a letter"),
        ({"serving_dir": Path("/m/a/b:c")}, "expected a last part"),
        ({"serving_dir": Path("/m/" + "a" * 41)}, "at most 40 letters"),
        ({"serving_dir": Path("/m\n/pap")}, r"--serving_dir='/m\n/pap': expected printable"),
        ({"output_dir": Path("/o\x85")}, "--output_dir='/o\\x85': expected printable"),
        ({"command": "a\nb: c"}, "expected printable"),
        ({"image": "a b"}, "--image='a b'"),
        ({"host": "localhost"}, "--host='localhost': expected an IP address"),
        ({"grpc_port": 9000, "rest_port": 9000}, "expected two ports, got 9000 twice"),
        ({"min_replicas": 7}, "--min_replicas=7: expected at most --max_replicas=6"),
        ({"volume_claim": "My_Claim"}, "--volume_claim='My_Claim'"),
        ({"volume_claim": "a..b"}, "--volume_claim='a..b'"),
        ({"cpus": float("nan")}, "--cpus=nan"),
    ],
    ids=str,
)
def test_settings_that_would_break_a_file_are_refused(values, said):
    with pytest.raises(DeployError) as error:
        settings(**values)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.fixture
def serving_dir(tmp_path):
    for version in (1, 2):
        (tmp_path / "models" / "pap_stage2" / str(version)).mkdir(parents=True)
    return tmp_path / "models" / "pap_stage2"


def deploy(serving_dir, *arguments):
    return command(
        "serving.deploy", f"--serving_dir={serving_dir}", *arguments, cwd=serving_dir.parents[1]
    )


def last_line(done):
    return done.stderr.splitlines()[-1]


def test_command_writes_all_files_and_replaces_none_unasked(serving_dir):
    folder = serving_dir.parents[1] / "deploy"
    done = deploy(serving_dir, "--port=9500", "--cpus=4")
    assert done.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    command_line = f"python -m serving.deploy --serving_dir={serving_dir} --port=9500 --cpus=4"
    expected = Settings(serving_dir, folder, command_line, grpc_port=9500, cpus=4.0)
    assert {path.name: path.read_text() for path in folder.iterdir()} == render(expected)
    config = serving_dir.parent / "models.config"
    assert f"{config}: lists pap_stage2 from now on" in done.stdout
    (entry,) = text_format.Parse(
        config.read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert (entry.name, entry.base_path) == ("pap_stage2", "/models/pap_stage2")
    assert entry.model_platform == "tensorflow" and not entry.version_labels
    assert entry.model_version_policy.WhichOneof("policy_choice") is None

    model_config.ModelConfig(serving_dir).assign("stable", 1)
    labelled = config.read_bytes()
    done = deploy(serving_dir, "--port=9500", "--cpus=4", "--nooverwrite")
    assert done.returncode == 0 and done.stdout.count(": unchanged") == 4
    assert f"{config}: kept; pap_stage2 by versions 1, stable = 1" in done.stdout
    assert config.read_bytes() == labelled

    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = deploy(serving_dir, "--port=9600")
    assert done.returncode == 1 and "--overwrite replaces what differs" in last_line(done)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    done = deploy(serving_dir, "--port=9600", "--overwrite")
    assert done.returncode == 0 and done.stdout.count(": written") == 4
    (service,) = yaml.safe_load((folder / "docker-compose.yaml").read_text())["services"].values()
    assert server_flags(service["command"])["port"] == "9600"
    assert not [path for path in folder.iterdir() if path.name not in FILES]


def test_other_models_and_their_labels_stay(serving_dir):
    (serving_dir.parent / "pap_stage1" / "5").mkdir(parents=True)
    other = model_config.ModelConfig(serving_dir.parent / "pap_stage1")
    other.assign("canary", 5)
    assert deploy(serving_dir).returncode == 0
    found = model_config.read(other.path).model_config_list.config
    assert [entry.name for entry in found] == ["pap_stage1", "pap_stage2"]
    assert dict(found[0].version_labels) == {"canary": 5}


def test_a_models_config_for_other_folders_is_not_changed(serving_dir):
    config = model_config.ModelConfig(serving_dir, "/elsewhere")
    config.publish(2)
    before = config.path.read_bytes()
    done = deploy(serving_dir)
    assert done.returncode == 1
    assert "base_path of pap_stage2: expected '/models/pap_stage2'" in last_line(done)
    assert config.path.read_bytes() == before and not (serving_dir.parents[1] / "deploy").exists()


def test_a_folder_without_versions_is_refused(tmp_path):
    (tmp_path / "models" / "empty").mkdir(parents=True)
    done = deploy(tmp_path / "models" / "empty")
    assert done.returncode == 1 and "holds no version" in last_line(done)
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "empty"]


def test_settings_have_the_defaults_of_the_flags():
    code = (
        "import json; from absl import flags; import serving.deploy.__main__; "
        "print(json.dumps({name: flags.FLAGS[name].default for name in flags.FLAGS}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    defaults = json.loads(done.stdout)
    names = {"grpc_port": "port", "rest_port": "rest_api_port"}
    for field in dataclasses.fields(Settings):
        if field.default is not dataclasses.MISSING:
            assert defaults[names.get(field.name, field.name)] == field.default, field.name
