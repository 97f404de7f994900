"""Loads a server from a process of its own: many clients, each with one request in flight.

Requests are serialised once and answers are not parsed, so that what is measured is the server's.
Imports neither TensorFlow nor protobuf.
"""

import dataclasses
import http.client
import statistics
import threading
import time
from collections.abc import Callable

import grpc

_PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclasses.dataclass(frozen=True)
class Load:
    """What many clients saw.

    Attributes:
        p50: Median latency in milliseconds.
        p99: 99th percentile of the latency in milliseconds.
        requests_per_second: Answers of all clients.
        failed: Requests without a good answer.
        processors: How many processors the clients themselves kept busy.
    """

    p50: float
    p99: float
    requests_per_second: float
    failed: int
    processors: float = 0.0


def measure(
    transport: str, address: str, path: str, body: bytes, clients: int, seconds: float
) -> Load:
    """Sends one request again and again.

    Args:
        transport: "grpc" or "http".
        address: host:port.
        path: Of the URL; unused by gRPC.
        body: Serialised request.
        clients: How many at the same time.
        seconds: How long, after a fifth of it to warm up.
    """
    warm = time.perf_counter() + seconds / 5
    end = warm + seconds
    latencies: list[list[float]] = [[] for _ in range(clients)]
    failed = [0] * clients

    def client(number: int) -> None:
        send = _over_grpc(address, body) if transport == "grpc" else _over_http(address, path, body)
        while (start := time.perf_counter()) < end:
            good = send()
            done = time.perf_counter()
            if warm <= done <= end:
                latencies[number].append(1000 * (done - start))
                failed[number] += not good

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started, busy = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy = (time.process_time() - busy) / (time.perf_counter() - started)
    every = sorted(value for own in latencies for value in own)
    return Load(
        p50=statistics.median(every),
        p99=every[int(0.99 * (len(every) - 1))],
        requests_per_second=len(every) / seconds,
        failed=sum(failed),
        processors=busy,
    )


def _over_grpc(address: str, body: bytes) -> Callable[[], bool]:
    # A pool of its own gives every client a connection, as processes of their own would have.
    options = [("grpc.use_local_subchannel_pool", 1)]
    call = grpc.insecure_channel(address, options).unary_unary(_PREDICT)

    def send() -> bool:
        try:
            return bool(call(body, timeout=60))
        except grpc.RpcError:
            return False

    return send


def _over_http(address: str, path: str, body: bytes) -> Callable[[], bool]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)

    def send() -> bool:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200

    return send
