"""The whole server in one object: models, gRPC front, REST front, and how they start and stop."""

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from serving.model import warmup
from serving.server import bearer, config_source, connections, listening, monitoring
from serving.server.admission import Admission
from serving.server.batching_config import BatchingParameters
from serving.server.deadlines import DeadlinePool
from serving.server.errors import ServingError
from serving.server.grpc.front import GrpcFront
from serving.server.manager import Manager
from serving.server.monitoring import Gauge
from serving.server.rest import front as rest
from serving.server.rest.http_server import HttpServer
from serving.server.rest.names import Names
from serving.server.servable import Servable

#: Calls that may wait for something else than a place among the requests at work.
_OTHER_THREADS = 8

_AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server serves.

    Attributes:
        host: Address that both fronts listen on.
        port: Of gRPC; 0 takes a free one, None switches the front off.
        rest_port: Of REST, likewise.
        batching: Merges concurrent requests; None for not.
        poll_seconds: Between two looks for new versions; 0 for none.
        config_poll_seconds: Between two looks at the configuration; 0 for none.
        early_labels: Lets a label name a version that is not available yet.
        intra_op_threads: Threads that one operation uses; 0 lets TensorFlow choose.
        inter_op_threads: Operations that run at the same time; 0 lets TensorFlow choose.
        token_file: Holds the bearer token that clients must bring; None for none.
        tls: Files of certificate chain and private key in PEM; None for none.
        max_request_bytes: Larger requests are refused.
        max_concurrent_requests: More requests at the same time are refused.
        rest_timeout_seconds: That a model has for a request over REST; None for no limit.
        grpc_threads: None for as many as are needed.
        drain_seconds: How long requests may go on once the server is to stop.
        page: Whether / shows the page.
        prometheus_path: Where the metrics are; None for nowhere.
        image_threads: Requests that hold images and are at work at the same time; None: twice as
            many as there are processors, 4 at least.
        max_connections: Open at the same time on each front; None: 1,024, or what the limit of
            descriptors leaves.
        allow_reload_config: Whether a client may say which models are served.
        allowed_hosts: Names under which clients reach the server, beside its address and localhost.
    """

    host: str = "127.0.0.1"
    port: int | None = 0
    rest_port: int | None = 0
    batching: BatchingParameters | None = None
    poll_seconds: float = 1.0
    config_poll_seconds: float = 1.0
    early_labels: bool = True
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    token_file: Path | None = None
    tls: tuple[Path, Path] | None = None
    max_request_bytes: int = 16 * 2**20
    max_concurrent_requests: int = 128
    rest_timeout_seconds: float | None = 30.0
    grpc_threads: int | None = None
    drain_seconds: float = 30.0
    page: bool = True
    prometheus_path: str | None = monitoring.DEFAULT_PATH
    image_threads: int | None = None
    max_connections: int | None = None
    allow_reload_config: bool = False
    allowed_hosts: tuple[str, ...] = ()


class Server:
    """Serves the models of a source.

    Listens from the start, so that a port in use is known before a model is loaded; answers after
    `start`.

    Args:
        source: Says which models.
        settings: Says how.

    Attributes:
        manager: The models' versions.
        admission: The requests at work.
        images: The threads of those that hold images.
        grpc_port: None where the front is off.
        rest_port: Likewise.

    Raises:
        ConfigError: If the source cannot be read.
        TokenError: If the token cannot be read.
        ServingError: If the configuration is not valid.
        OSError: If a port is in use or a certificate cannot be used.
    """

    def __init__(self, source: config_source.Source, settings: Settings) -> None:
        self._settings = settings
        config = source.read()
        token = None if settings.token_file is None else bearer.read(settings.token_file)
        tls = None
        if settings.tls is not None:
            listening.check_certificate(*settings.tls)
            certificate, key = settings.tls
            tls = certificate.read_bytes(), key.read_bytes()
        self.admission = Admission(settings.max_concurrent_requests)
        threads = settings.image_threads or max(4, 2 * (os.cpu_count() or 1))
        self.images = DeadlinePool(threads)
        self.manager = Manager(
            config,
            load=self._load,
            poll_seconds=settings.poll_seconds,
            allow_version_labels_for_unavailable_models=settings.early_labels,
            on_change=self._changed,
        )
        self._metrics = monitoring.Metrics(self.manager.model_names)
        self._metrics.watch(self._gauges)
        max_connections = connections.limit(settings.max_connections)
        self._grpc: GrpcFront | None = None
        self._http: HttpServer | None = None
        self._logged: dict[str, list[int]] = {}
        self._telling = threading.Lock()
        names = self.manager.model_names()
        if settings.rest_port is not None:
            app = rest.app(
                self.manager,
                admission=self.admission,
                metrics=self._metrics,
                max_request_bytes=settings.max_request_bytes,
                timeout=settings.rest_timeout_seconds,
                token=token,
                prometheus_path=settings.prometheus_path,
                page_model=names[0] if settings.page and names else None,
                names=Names(settings.allowed_hosts, settings.host),
            )
            self._http = HttpServer(
                app,
                settings.host,
                settings.rest_port,
                tls=settings.tls,
                drain_seconds=settings.drain_seconds,
                max_connections=max_connections,
            )
        if settings.port is not None:
            self._grpc = GrpcFront(
                self.manager,
                settings.host,
                settings.port,
                admission=self.admission,
                metrics=self._metrics,
                max_request_bytes=settings.max_request_bytes,
                threads=settings.grpc_threads or self.admission.limit + _OTHER_THREADS,
                token=token,
                tls=tls,
                max_connections=max_connections,
                reload_below=[Path(m.base_path) for m in config.model_config_list.config]
                if settings.allow_reload_config
                else None,
            )
        self.grpc_port = self._grpc and self._grpc.port
        self.rest_port = self._http and self._http.port
        self._follower = config_source.Follower(
            source, self.manager, config, settings.config_poll_seconds
        )

    def start(self) -> None:
        """Loads the models, then answers."""
        self.manager.start()
        if self._settings.config_poll_seconds:
            self._follower.start()
        for front in (self._grpc, self._http):
            if front is not None:
                front.start()

    def stop(self) -> None:
        """Accepts no more requests, lets those at work end, then unloads the models."""
        deadline = time.monotonic() + self._settings.drain_seconds
        self._follower.stop()
        self.manager.on_change = None
        stops: list[Callable[[], None]] = []
        if self._grpc is not None:
            stops.append(functools.partial(self._grpc.stop, self._settings.drain_seconds))
        if self._http is not None:
            stops.append(self._http.stop)
        threads = [threading.Thread(target=stop) for stop in stops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.manager.stop(max(0.0, deadline - time.monotonic()))

    def _load(self, name: str, version: int, path: Path) -> Servable:
        start, succeeded = time.perf_counter(), False
        try:
            servable = warmup.load(
                name,
                version,
                path,
                batching=self._settings.batching,
                intra_op_threads=self._settings.intra_op_threads,
                inter_op_threads=self._settings.inter_op_threads,
                images=self.images,
            )
            succeeded = True
            return servable
        finally:
            self._metrics.load(str(path), succeeded, time.perf_counter() - start)

    def _gauges(self) -> Iterator[Gauge]:
        counts = self.images.counts()
        yield Gauge("embedded_server_image_threads", "Threads for images.", self.images.threads)
        yield Gauge("embedded_server_image_runs", "Runs at work that hold images.", counts.running)
        yield Gauge(
            "embedded_server_overdue_runs",
            "Runs at work whose requests have left at their deadline.",
            counts.overdue,
        )
        yield Gauge(
            "embedded_server_overdue_runs_total",
            "Runs that were still at work at the deadline of their requests.",
            counts.overdue_ever,
            counts=True,
        )
        yield Gauge(
            "embedded_server_unstarted_runs_total",
            "Runs that had not begun at the deadline of their requests.",
            counts.unstarted_ever,
            counts=True,
        )
        if self._http is not None:
            yield Gauge(
                "embedded_server_http_connections",
                "Open connections over HTTP.",
                self._http.open_connections,
            )
            yield Gauge(
                "embedded_server_http_connections_closed_total",
                "Connections over HTTP that were closed because there were too many.",
                self._http.closed_for_others,
                counts=True,
            )

    def _changed(self) -> None:
        # One after another, so that the last word is the newest.
        with self._telling:
            if self._grpc is not None:
                self._grpc.publish_health()
            for name in self.manager.model_names():
                serving = self.available(name)
                if serving != self._logged.get(name, []):
                    self._logged[name] = serving
                    _log.info("model %s: serving %s", name, _versions(serving))

    def available(self, name: str) -> list[int]:
        """The versions of a model that answer."""
        try:
            states = self.manager.status(model_pb2.ModelSpec(name=name)).model_version_status
        except ServingError:
            return []
        return sorted(each.version for each in states if each.state == _AVAILABLE)


@contextlib.contextmanager
def running(serving_dir: str | Path, *, model_name: str = "", **settings: Any) -> Iterator[Server]:
    """A server in this process for the length of a block.

    Args:
        serving_dir: Holds the versions of one model.
        model_name: The directory's name by default.
        **settings: See `Settings`.

    Example:
        >>> with running("models/pap_stage2") as server:  # doctest: +SKIP
        ...     requests.get(f"http://127.0.0.1:{server.rest_port}/v1/models/pap_stage2")
    """
    server = Server(config_source.ServingDir(serving_dir, model_name), Settings(**settings))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _versions(numbers: list[int]) -> str:
    if not numbers:
        return "no version"
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
