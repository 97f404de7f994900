"""Renders the files that run TensorFlow Serving on the versions of a model."""

import dataclasses
import hashlib
import ipaddress
import json
import math
import os
import re
from pathlib import Path

import jinja2

from serving.store import model_config
from tfds_pap.errors import PapError

#: In this order: the last one holds the first two.
FILES = ("batching.config", "monitoring.config", "docker-compose.yaml", "kubernetes.yaml")

# Of a name that may stand in a URL, a file name and, with "_" as "-", in Kubernetes.
_MODEL_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]{0,38}[A-Za-z0-9])?")
_CLAIM_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


class DeployError(PapError):
    """A setting that cannot be used; the message is one line and begins with the flag."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the files are rendered from.

    Attributes:
        serving_dir: Holds the versions of one model; its name is the model's name.
        output_dir: Where the files will lie: the compose file names the models relative to it.
        command: The command that makes the files, for their first line.
        image: Container image.
        host: Address on which the compose file publishes REST; gRPC stays on the machine.
        grpc_port: Port of gRPC, from 1024, as the server is not root.
        rest_port: Port of REST, likewise.
        cpus: Processors that the server may use.
        memory_mib: Memory that it may use, in MiB.
        max_batch_size: Rows of a merged batch; a larger request is refused.
        batch_timeout_micros: Microseconds that a batch waits for company.
        max_enqueued_batches: Batches that may wait.
        poll_seconds: Seconds between two looks at models.config.
        startup_seconds: Seconds that loading the model may take.
        drain_seconds: Seconds for the requests under way when Kubernetes stops a server.
        min_replicas: Least number of servers in Kubernetes.
        max_replicas: Greatest number.
        volume_claim: Kubernetes claim on the volume that holds the models; "" for the model's name
            and "-models".

    Raises:
        DeployError: A value that cannot be used.
    """

    serving_dir: Path
    output_dir: Path
    command: str
    image: str = "tensorflow/serving:2.20.0"
    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 8501
    cpus: float = 2.0
    memory_mib: int = 2048
    max_batch_size: int = 64
    batch_timeout_micros: int = 1000
    max_enqueued_batches: int = 100
    poll_seconds: int = 10
    startup_seconds: int = 120
    drain_seconds: int = 30
    min_replicas: int = 2
    max_replicas: int = 6
    volume_claim: str = ""

    def __post_init__(self) -> None:
        _require(
            _MODEL_NAME.fullmatch(self.name),
            f"--serving_dir={str(self.serving_dir)!r}: expected a last part of at most 40 letters, "
            "digits, '_' and '-' that begins with a letter, as it is the model's name",
        )
        for flag, text in (
            ("serving_dir", str(self.serving_dir.absolute())),
            ("output_dir", str(self.output_dir.absolute())),
            ("serving_dir", self.command),
        ):
            _require(text.isprintable(), f"--{flag}={text!r}: expected printable characters")
        _require(
            _CLAIM_NAME.fullmatch(self.claim),
            f"--volume_claim={self.claim!r}: expected small letters, digits, '-' and '.'",
        )
        _require(_IMAGE.fullmatch(self.image), f"--image={self.image!r}: expected an image's name")
        # Flags keep values in their ranges, but let pass what is not a number.
        _require(math.isfinite(self.cpus), f"--cpus={self.cpus}: expected a number")
        _require(
            self.grpc_port != self.rest_port,
            f"--port and --rest_api_port: expected two ports, got {self.grpc_port} twice",
        )
        _require(
            self.min_replicas <= self.max_replicas,
            f"--min_replicas={self.min_replicas}: expected at most --max_replicas="
            f"{self.max_replicas}",
        )
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise DeployError(f"--host={self.host!r}: expected an IP address") from None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.serving_dir.absolute().name

    @property
    def kubernetes_name(self) -> str:
        """The model's name as Kubernetes allows it."""
        return self.name.lower().replace("_", "-")

    @property
    def claim(self) -> str:
        """The claim on the models' volume."""
        return self.volume_claim or f"{self.kubernetes_name}-models"

    @property
    def threads(self) -> int:
        """Threads of the server: in a container it would count the machine's processors."""
        return math.ceil(self.cpus)

    @property
    def models_source(self) -> str:
        """The models' folder, relative to the compose file."""
        models = self.serving_dir.absolute().parent
        path = Path(os.path.relpath(models, self.output_dir.absolute())).as_posix()
        # Without a dot in front, compose takes it for the name of a volume.
        return path if path.startswith(".") else f"./{path}"

    def server_arguments(self) -> list[str]:
        """The arguments of tensorflow_model_server."""
        return [
            f"--port={self.grpc_port}",
            f"--rest_api_port={self.rest_port}",
            f"--model_config_file={model_config.SERVER_MODELS_DIR}/{model_config.FILE_NAME}",
            f"--model_config_file_poll_wait_seconds={self.poll_seconds}",
            "--allow_version_labels_for_unavailable_models=true",
            "--enable_batching=true",
            "--batching_parameters_file=/etc/tensorflow_serving/batching.config",
            "--monitoring_config_file=/etc/tensorflow_serving/monitoring.config",
            "--enable_grpc_healthcheck_service=true",
            f"--tensorflow_intra_op_parallelism={self.threads}",
            f"--tensorflow_inter_op_parallelism={self.threads}",
        ]

    def health_check(self) -> list[str]:
        """A command that succeeds while a version of the model is AVAILABLE.

        HTTP 200 would not do: versions that failed or were unloaded are listed as well. The image
        has no curl, so that bash opens the connection.
        """
        request = (
            rf"GET /v1/models/{self.name} HTTP/1.1\r\n"
            rf"Host: localhost\r\nConnection: close\r\n\r\n"
        )
        script = (
            f"exec 3<>/dev/tcp/127.0.0.1/{self.rest_port} && "
            f"printf '{request}' >&3 && "
            """timeout 4 grep -q '"state": *"AVAILABLE"' <&3"""
        )
        return ["bash", "-c", script]


def templates() -> jinja2.Environment:
    """Returns what reads the templates of this folder; `quoted` makes a YAML scalar of a value."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("serving.deploy", "."),
        # YAML is no HTML: values are quoted by the filters.
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    return environment


def render(settings: Settings) -> dict[str, str]:
    """Returns the content of every file by its name.

    Args:
        settings: What they are rendered from.
    """
    environment = templates()
    environment.filters["compose_quoted"] = _compose_quoted
    files: dict[str, str] = {}
    for name in FILES:
        template = environment.get_template(f"{name}.j2")
        digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()
        files[name] = template.render(
            settings=settings, files=files, digest=digest, models_dir=model_config.SERVER_MODELS_DIR
        )
    return files


def _require(holds: object, message: str) -> None:
    if not holds:
        raise DeployError(message)


def _quoted(value: object) -> str:
    """A YAML scalar: a JSON string is one."""
    return json.dumps(str(value), ensure_ascii=False)


def _compose_quoted(value: object) -> str:
    """As `_quoted`; compose would put variables where it reads a dollar."""
    return _quoted(str(value).replace("$", "$$"))
