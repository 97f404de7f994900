"""Writes what runs TensorFlow Serving on a published model: configs, compose file, Kubernetes.

    python -m serving.deploy --serving_dir=models/pap_stage2 --output_dir=deploy
    docker compose -f deploy/docker-compose.yaml up --detach

models.config is not among these files: it lies beside the model, where serving.export and
serving.labels keep it and the server looks again and again. It is written where it is missing.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from serving.deploy.render import DeployError, Settings, render
from tfds_pap import commands, path_flags

_SERVING_DIR = path_flags.define(
    "serving_dir", None, "Holds the versions of one model; its name is served.", required=True
)
_OUTPUT_DIR = path_flags.define(
    "output_dir", "deploy", "Where to write (default: deploy).", path_flags.NEW_FOLDER
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace files that are there and differ (default: off)."
)
_IMAGE = flags.DEFINE_string(
    "image", "tensorflow/serving:2.20.0", "Image (default: tensorflow/serving:2.20.0)."
)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address on which the compose file publishes REST; TensorFlow Serving asks nobody who they "
    "are. gRPC stays on this machine (default: 127.0.0.1, this machine only).",
)
_PORT = flags.DEFINE_integer("port", 8500, "Port of gRPC (default: 8500).", 1024, 65535)
_REST_API_PORT = flags.DEFINE_integer(
    "rest_api_port", 8501, "Port of REST (default: 8501).", 1024, 65535
)
_CPUS = flags.DEFINE_float("cpus", 2.0, "Processors of a server (default: 2).", 0.1, 1024)
_MEMORY_MIB = flags.DEFINE_integer(
    "memory_mib", 2048, "Memory of a server in MiB (default: 2048).", 256, 2**24
)
_MAX_BATCH_SIZE = flags.DEFINE_integer(
    "max_batch_size",
    64,
    "Images of a merged batch; a request for more is refused (default: 64).",
    1,
)
_BATCH_TIMEOUT_MICROS = flags.DEFINE_integer(
    "batch_timeout_micros",
    1000,
    "Microseconds that a batch waits for company (default: 1000).",
    0,
)
_MAX_ENQUEUED_BATCHES = flags.DEFINE_integer(
    "max_enqueued_batches",
    100,
    "Batches that may wait; further requests are refused (default: 100).",
    1,
)
_POLL_SECONDS = flags.DEFINE_integer(
    "poll_seconds", 10, "Seconds between two looks at models.config (default: 10).", 1
)
_STARTUP_SECONDS = flags.DEFINE_integer(
    "startup_seconds", 120, "Seconds that loading the model may take (default: 120).", 5
)
_DRAIN_SECONDS = flags.DEFINE_integer(
    "drain_seconds",
    30,
    "Seconds for the requests under way when Kubernetes stops a server (default: 30).",
    1,
)
_MIN_REPLICAS = flags.DEFINE_integer(
    "min_replicas", 2, "Least number of servers in Kubernetes (default: 2).", 1
)
_MAX_REPLICAS = flags.DEFINE_integer("max_replicas", 6, "Greatest number (default: 6).", 1)
_VOLUME_CLAIM = flags.DEFINE_string(
    "volume_claim",
    "",
    "Kubernetes claim on the volume that holds the models (default: the model's name with "
    "'-models').",
)


def main(argv: list[str]) -> None:
    """Renders all files, then writes all of them or none."""
    commands.no_arguments(argv)
    files = render(_settings())
    serving_dir, output_dir = Path(_SERVING_DIR.value), Path(_OUTPUT_DIR.value)
    _refuse_to_replace(output_dir, files)
    _ensure_listed(serving_dir)
    _write(output_dir, files)
    compose, kubernetes = output_dir / "docker-compose.yaml", output_dir / "kubernetes.yaml"
    print(f"Start: docker compose -f {shlex.quote(str(compose))} up --detach")
    print(f"   or: kubectl apply -f {shlex.quote(str(kubernetes))}")


def _settings() -> Settings:
    shown = [each for each in sys.argv[1:] if each.lstrip("-") not in ("overwrite", "nooverwrite")]
    return Settings(
        serving_dir=Path(_SERVING_DIR.value),
        output_dir=Path(_OUTPUT_DIR.value),
        command=shlex.join(["python", "-m", "serving.deploy", *shown]),
        image=_IMAGE.value,
        host=_HOST.value,
        grpc_port=_PORT.value,
        rest_port=_REST_API_PORT.value,
        cpus=_CPUS.value,
        memory_mib=_MEMORY_MIB.value,
        max_batch_size=_MAX_BATCH_SIZE.value,
        batch_timeout_micros=_BATCH_TIMEOUT_MICROS.value,
        max_enqueued_batches=_MAX_ENQUEUED_BATCHES.value,
        poll_seconds=_POLL_SECONDS.value,
        startup_seconds=_STARTUP_SECONDS.value,
        drain_seconds=_DRAIN_SECONDS.value,
        min_replicas=_MIN_REPLICAS.value,
        max_replicas=_MAX_REPLICAS.value,
        volume_claim=_VOLUME_CLAIM.value,
    )


def _refuse_to_replace(output_dir: Path, files: dict[str, str]) -> None:
    if _OVERWRITE.value:
        return
    differing = [
        str(output_dir / name)
        for name, text in files.items()
        if (output_dir / name).exists() and (output_dir / name).read_bytes() != text.encode()
    ]
    if differing:
        raise DeployError(
            f"{', '.join(differing)}: kept, nothing was written; --overwrite replaces what differs"
        )


def _ensure_listed(serving_dir: Path) -> None:
    """Makes sure that models.config lists the model where the server will find it."""
    commands.quiet_logs()
    from serving.store import model_config, publish

    versions = publish.versions(serving_dir)
    if not versions:
        raise DeployError(
            f"--serving_dir={serving_dir}: holds no version; python -m serving.export writes one"
        )
    config = model_config.ModelConfig(serving_dir)
    listed = {}
    if config.path.exists():
        entries = model_config.read(config.path).model_config_list.config
        listed = {entry.name: entry.base_path for entry in entries}
    if config.name not in listed:
        config.publish(versions[-1])
        print(f"{config.path}: lists {config.name} from now on, served is the newest version")
        return
    base_path = f"{model_config.SERVER_MODELS_DIR}/{config.name}"
    if listed[config.name].rstrip("/") != base_path:
        raise DeployError(
            f"{config.path}: base_path of {config.name}: expected {base_path!r}, as the models "
            f"are mounted at {model_config.SERVER_MODELS_DIR}, got {listed[config.name]!r}"
        )
    labels, pinned = config.labels(), config.pinned()
    served = f"versions {', '.join(map(str, pinned))}" if pinned else "its own policy"
    named = "".join(f", {label} = {version}" for label, version in sorted(labels.items()))
    print(f"{config.path}: kept; {config.name} by {served}{named}")


def _write(output_dir: Path, files: dict[str, str]) -> None:
    from tfds_pap import files as file_writing

    for name, text in files.items():
        path = output_dir / name
        unchanged = path.exists() and path.read_bytes() == text.encode()
        if not unchanged:
            file_writing.write_atomically(path, text)
        print(f"{path}: {'unchanged' if unchanged else 'written'}")


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
