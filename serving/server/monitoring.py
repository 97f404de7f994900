"""What the server counts, under TensorFlow Serving's metric names, as Prometheus reads it.

Names, labels and buckets as in tensorflow_serving/servables/tensorflow/util.cc and
tensorflow/cc/saved_model/loader.cc. REST calls its APIs predict, classify and regress, gRPC calls
them Predict, Classify and Regress.
"""

import bisect
import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import prometheus_client
from prometheus_client import core
from prometheus_client.registry import Collector

from serving.server.errors import ServingError

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4

_REQUEST_COUNT = ":tensorflow:serving:request_count"
_REQUEST_LATENCY = ":tensorflow:serving:request_latency"
_LOAD_ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
_LOAD_LATENCY = ":tensorflow:cc:saved_model:load_latency"

#: Upper limits in microseconds; the last bucket has none.
_LIMITS = [10 * 1.8**power for power in range(33)]
_LIMIT_TEXTS = [*(f"{limit:g}" for limit in _LIMITS), "+Inf"]

#: Stands for every model that is not configured: clients may ask for any number of names.
_UNKNOWN_MODEL = "(unknown)"


class Gauge(NamedTuple):
    """A figure of this server's own, which TensorFlow Serving does not have.

    Attributes:
        name: Begins with `embedded_server_`; one that counts ends in `_total`.
        documentation: One sentence.
        value: Now.
        counts: Whether it only grows.
    """

    name: str
    documentation: str
    value: float
    counts: bool = False


class Metrics(Collector):
    """Counts requests and loads, from any thread.

    Args:
        model_names: Gives the configured models.

    Example:
        >>> metrics = Metrics(lambda: ["pap"])
        >>> metrics.request("pap", "predict", "REST", grpc.StatusCode.OK, 0.002)
        >>> b':request_count{model_name="pap",status="OK"} 1.0' in metrics.page()
        True
    """

    def __init__(self, model_names: Callable[[], Collection[str]]) -> None:
        self._model_names = model_names
        self._gauges: list[Callable[[], Iterable[Gauge]]] = []
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(self)
        self._lock = threading.Lock()
        self._requests: collections.Counter[tuple[str, str]] = collections.Counter()
        self._latencies: dict[tuple[str, str, str], _Histogram] = {}
        self._loads: collections.Counter[tuple[str, str]] = collections.Counter()
        self._load_microseconds: collections.Counter[str] = collections.Counter()

    def request(
        self, model: str, api: str, entrypoint: str, code: grpc.StatusCode, seconds: float
    ) -> None:
        """Counts a request that was answered; its latency, too, if it was answered well."""
        if model not in self._model_names():
            model = _UNKNOWN_MODEL
        with self._lock:
            self._requests[model, code.name] += 1
            if code is grpc.StatusCode.OK:
                labels = (model, api, entrypoint)
                if labels not in self._latencies:
                    self._latencies[labels] = _Histogram()
                self._latencies[labels].add(1e6 * seconds)

    @contextlib.contextmanager
    def counted(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts what is done in a `with` block as one request."""
        start, code = time.perf_counter(), grpc.StatusCode.OK
        try:
            yield
        except BaseException as error:
            code = error.code if isinstance(error, ServingError) else grpc.StatusCode.INTERNAL
            raise
        finally:
            self.request(model, api, entrypoint, code, time.perf_counter() - start)

    def load(self, path: str, succeeded: bool, seconds: float) -> None:
        """Counts an attempt to load a version; its warm-up is part of the latency."""
        with self._lock:
            self._loads[path, "success" if succeeded else "fail"] += 1
            if succeeded:
                self._load_microseconds[path] += round(1e6 * seconds)

    def watch(self, gauges: "Callable[[], Iterable[Gauge]]") -> None:
        """Adds figures that are read whenever somebody looks."""
        self._gauges.append(gauges)

    def page(self) -> bytes:
        """Everything in Prometheus's text format."""
        text = prometheus_client.generate_latest(self._registry)
        # The library appends _total to the type of every counter; TensorFlow Serving does not.
        for name in (_REQUEST_COUNT, _LOAD_ATTEMPTS, _LOAD_LATENCY):
            text = text.replace(f" {name}_total ".encode(), f" {name} ".encode())
        return text

    def collect(self) -> Iterator[core.Metric]:
        """What the registry asks for."""
        with self._lock:
            requests, loads = dict(self._requests), dict(self._loads)
            load_microseconds = dict(self._load_microseconds)
            latencies = {labels: histogram.copy() for labels, histogram in self._latencies.items()}
        yield _counter(
            _REQUEST_COUNT, "The total number of requests.", ("model_name", "status"), requests
        )
        latency = core.HistogramMetricFamily(
            _REQUEST_LATENCY,
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            labels=("model_name", "API", "entrypoint"),
        )
        for labels, histogram in latencies.items():
            latency.add_metric(labels, histogram.buckets(), histogram.total)
        yield latency
        yield _counter(
            _LOAD_ATTEMPTS,
            "The number of times a SavedModel was requested to be loaded.",
            ("model_path", "status"),
            loads,
        )
        yield _counter(
            _LOAD_LATENCY,
            "Latency in microseconds for SavedModels that were successfully loaded.",
            ("model_path",),
            {(path,): value for path, value in load_microseconds.items()},
        )
        for gauge in (each for gauges in self._gauges for each in gauges()):
            kind = "counter" if gauge.counts else "gauge"
            metric = core.Metric(gauge.name, gauge.documentation, kind)
            metric.add_sample(gauge.name, {}, gauge.value)
            yield metric


def _counter(
    name: str, documentation: str, labels: tuple[str, ...], values: Mapping[Any, int]
) -> core.Metric:
    metric = core.Metric(name, documentation, "counter")
    for own, value in values.items():
        metric.add_sample(name, dict(zip(labels, own, strict=True)), value)
    return metric


class _Histogram:
    """Counts of values in TensorFlow Serving's buckets."""

    def __init__(self) -> None:
        self.counts = [0] * len(_LIMIT_TEXTS)
        self.total = 0.0

    def add(self, value: float) -> None:
        # As there, a value at a limit belongs to the next bucket.
        self.counts[bisect.bisect_right(_LIMITS, value)] += 1
        self.total += value

    def copy(self) -> "_Histogram":
        copied = _Histogram()
        copied.counts, copied.total = list(self.counts), self.total
        return copied

    def buckets(self) -> list[tuple[str, float]]:
        below = itertools.accumulate(map(float, self.counts))
        return list(zip(_LIMIT_TEXTS, below, strict=True))
