"""An embedded server that speaks TensorFlow Serving's protocol, for a laptop or a test.

    python -m serving.server --serving_dir=models/pap_stage2

gRPC, REST, health, Prometheus metrics and a page to try images on. It follows new versions, and the
labels that serving.export and serving.labels keep. For production run tensorflow/serving:
python -m serving.deploy writes what it needs.
"""

import gc
import logging
import queue
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from serving.server import allocator
from tfds_pap import commands, path_flags
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    from serving.server.fronts import Server, Settings

_SERVING_DIR = path_flags.define(
    "serving_dir",
    None,
    "Holds the versions of one model (TensorFlow Serving: --model_base_path).",
    path_flags.FOLDER,
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", None, "Name of the model (default: that of --serving_dir)."
)
_MODEL_CONFIG_FILE = path_flags.define(
    "model_config_file",
    None,
    "models.config with any number of models, instead of --serving_dir.",
    path_flags.FILE,
)
_CONFIG_POLL = flags.DEFINE_float(
    "model_config_file_poll_wait_seconds",
    None,
    "Seconds between two looks at --model_config_file, or at the models.config beside "
    "--serving_dir; 0 for none (default: that of --file_system_poll_wait_seconds).",
    lower_bound=0,
)
_POLL = flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1.0,
    "Seconds between two looks for new versions; 0 for none (default: 1).",
    lower_bound=0,
)
_EARLY_LABELS = flags.DEFINE_bool(
    "allow_version_labels_for_unavailable_models",
    True,
    "Start with labels that name versions which are not loaded yet (default: on).",
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on (default: 127.0.0.1).")
_GRPC = flags.DEFINE_bool("grpc", True, "Serve gRPC (default: on).")
_PORT = flags.DEFINE_integer(
    "port", 8500, "Port of gRPC; 0 takes a free one (default: 8500).", 0, 65535
)
_REST = flags.DEFINE_bool("rest", True, "Serve REST (default: on).")
_REST_API_PORT = flags.DEFINE_integer(
    "rest_api_port", 8501, "Port of REST; 0 takes a free one (default: 8501).", 0, 65535
)
_REST_TIMEOUT = flags.DEFINE_integer(
    "rest_api_timeout_in_ms",
    30_000,
    "Milliseconds that the model has for a request over REST (default: 30000).",
    lower_bound=1,
)
_GRPC_THREADS = flags.DEFINE_integer(
    "grpc_max_threads",
    None,
    "Threads that answer gRPC (default: 8 more than --max_concurrent_requests).",
    lower_bound=1,
)
_BATCHING = flags.DEFINE_bool(
    "enable_batching", False, "Merge concurrent requests into batches (default: off)."
)
_BATCHING_FILE = path_flags.define(
    "batching_parameters_file",
    None,
    "batching.config for --enable_batching (default: none, TensorFlow Serving's defaults).",
    path_flags.FILE,
)
_MONITORING_FILE = path_flags.define(
    "monitoring_config_file",
    None,
    "monitoring.config that says whether and where the metrics are (default: none, --prometheus "
    "says it).",
    path_flags.FILE,
)
_PROMETHEUS = flags.DEFINE_bool(
    "prometheus", True, "Serve metrics at /monitoring/prometheus/metrics (default: on)."
)
_PAGE = flags.DEFINE_bool("page", True, "Serve a page to try images on at / (default: on).")
_INTRA_OP = flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism",
    0,
    "Threads that one operation uses (default: 0, TensorFlow chooses).",
    lower_bound=0,
)
_INTER_OP = flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism",
    0,
    "Operations that run at the same time (default: 0, TensorFlow chooses).",
    lower_bound=0,
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_request_bytes",
    16 * 2**20,
    "Bytes that a request may have; numbers in JSON take forty times as much memory while they are "
    "read (default: 16 MiB).",
    lower_bound=1,
)
_MAX_REQUESTS = flags.DEFINE_integer(
    "max_concurrent_requests",
    128,
    "Requests at work at the same time; more are refused (default: 128).",
    lower_bound=1,
)
_DRAIN = flags.DEFINE_float(
    "drain_seconds",
    30.0,
    "Seconds that requests at work have when the server is told to stop (default: 30).",
    lower_bound=0,
)
_TOKEN_FILE = path_flags.define(
    "bearer_token_file",
    None,
    "File with the token that clients must bring (default: none).",
    path_flags.FILE,
)
_CERTIFICATE = path_flags.define(
    "tls_certificate",
    None,
    "Certificate chain in PEM, for both ports (default: none, no TLS).",
    path_flags.FILE,
)
_KEY = path_flags.define(
    "tls_key", None, "Private key of --tls_certificate in PEM.", path_flags.FILE
)

_ALLOW_RELOAD = flags.DEFINE_bool(
    "allow_reload_config",
    False,
    "Let clients say by HandleReloadConfigRequest which models below the served directories are "
    "served, until the next look at models.config (default: off).",
)
_ALLOWED_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    [],
    "Names, without a port, under which browsers reach the server beside --host, localhost and "
    "addresses in digits (default: none).",
)
_IMAGE_THREADS = flags.DEFINE_integer(
    "image_threads",
    None,
    "Requests with images that are at work at the same time; others wait (default: twice as many "
    "as there are processors, at least 4).",
    lower_bound=1,
)
_MAX_CONNECTIONS = flags.DEFINE_integer(
    "max_connections",
    None,
    "Connections that may be open on each port; of more the longest idle one is closed (default: "
    "1024, or what the limit of descriptors leaves).",
    lower_bound=8,
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: list[str]) -> None:
    """Listens, loads, says what it serves, and waits to be stopped."""
    _check_flags(argv)
    # Not an Event: a second signal would find the first one's handler holding its lock.
    stopped: queue.SimpleQueue[int] = queue.SimpleQueue()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda number, _: stopped.put(number))

    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    allocator.prepare()
    commands.prepare_tensorflow()
    from serving.server import config_source, errors, fronts

    _log_to_stderr()
    # What was imported stays: without it a collection takes a hundredth of the time.
    gc.freeze()
    source: config_source.Source
    if _MODEL_CONFIG_FILE.value:
        source = config_source.ConfigFile(_MODEL_CONFIG_FILE.value)
    else:
        source = config_source.ServingDir(_SERVING_DIR.value, _MODEL_NAME.value or "")
    try:
        server = fronts.Server(source, _settings())
    except errors.ServingError as error:
        raise PapError(str(error)) from error
    server.start()
    _say_what_is_served(server)
    number = stopped.get()
    print(f"Stopping; {server.admission.at_work} requests are at work.", flush=True)
    server.stop()
    print("Stopped.", flush=True)
    if number == signal.SIGINT:
        raise KeyboardInterrupt("what was at work was answered; the same command serves again")


def _check_flags(argv: list[str]) -> None:
    commands.no_arguments(argv)
    if (_SERVING_DIR.value is None) == (_MODEL_CONFIG_FILE.value is None):
        raise app.UsageError("expected either --serving_dir or --model_config_file")
    if _MODEL_CONFIG_FILE.value and _MODEL_NAME.value:
        raise app.UsageError("--model_name: --model_config_file names the models")
    if (_CERTIFICATE.value is None) != (_KEY.value is None):
        raise app.UsageError("expected both --tls_certificate and --tls_key, or none")
    if _BATCHING_FILE.value and not _BATCHING.value:
        raise app.UsageError("--batching_parameters_file: expected --enable_batching as well")
    if not (_GRPC.value or _REST.value):
        raise app.UsageError("--nogrpc and --norest: expected one of them at most")


def _settings() -> "Settings":
    from serving.server import batching_config, fronts, monitoring, monitoring_config

    batching = None
    if _BATCHING_FILE.value:
        batching = batching_config.read(_BATCHING_FILE.value)
    elif _BATCHING.value:
        batching = batching_config.BatchingParameters()
    prometheus_path = monitoring.DEFAULT_PATH if _PROMETHEUS.value else None
    if _MONITORING_FILE.value:
        prometheus_path = monitoring_config.read(_MONITORING_FILE.value)
    config_poll = _POLL.value if _CONFIG_POLL.value is None else _CONFIG_POLL.value
    return fronts.Settings(
        host=_HOST.value,
        port=_PORT.value if _GRPC.value else None,
        rest_port=_REST_API_PORT.value if _REST.value else None,
        batching=batching,
        poll_seconds=_POLL.value,
        config_poll_seconds=config_poll,
        early_labels=_EARLY_LABELS.value,
        intra_op_threads=_INTRA_OP.value,
        inter_op_threads=_INTER_OP.value,
        token_file=Path(_TOKEN_FILE.value) if _TOKEN_FILE.value else None,
        tls=(Path(_CERTIFICATE.value), Path(_KEY.value)) if _CERTIFICATE.value else None,
        max_request_bytes=_MAX_BYTES.value,
        max_concurrent_requests=_MAX_REQUESTS.value,
        rest_timeout_seconds=_REST_TIMEOUT.value / 1000,
        grpc_threads=_GRPC_THREADS.value,
        drain_seconds=_DRAIN.value,
        page=_PAGE.value,
        prometheus_path=prometheus_path,
        image_threads=_IMAGE_THREADS.value,
        max_connections=_MAX_CONNECTIONS.value,
        allow_reload_config=_ALLOW_RELOAD.value,
        allowed_hosts=tuple(_ALLOWED_HOSTS.value),
    )


def _log_to_stderr() -> None:
    log = logging.getLogger("serving")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _say_what_is_served(server: "Server") -> None:
    print(
        "An embedded server that speaks TensorFlow Serving's protocol, for a laptop or a test; "
        "for production run tensorflow/serving: python -m serving.deploy"
    )
    for name in server.manager.model_names():
        versions = server.available(name)
        if versions:
            print(f"Model {name}, version {', '.join(map(str, versions))}")
        else:
            print(f"Model {name}: waits for a first version")
    scheme = "https" if _CERTIFICATE.value else "http"
    host = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
    if server.grpc_port is not None:
        print(f"gRPC:  {host}:{server.grpc_port}")
    if server.rest_port is not None:
        print(f"REST:  {scheme}://{host}:{server.rest_port}/v1/models/")
        if _PAGE.value:
            print(f"Page:  {scheme}://{host}:{server.rest_port}/")
    if _HOST.value not in _LOOPBACK and not (_TOKEN_FILE.value and _CERTIFICATE.value):
        missing = [
            words
            for value, words in (
                (_TOKEN_FILE.value, "no --bearer_token_file: whoever reaches it may use it"),
                (_CERTIFICATE.value, "no --tls_certificate: images travel in the clear"),
            )
            if not value
        ]
        print(f"Warning: --host={_HOST.value} with {'; '.join(missing)}", file=sys.stderr)
    sys.stdout.flush()


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
