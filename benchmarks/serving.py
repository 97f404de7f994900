"""What the embedded server adds to the model: latency and throughput of REST and gRPC, one run.

    python benchmarks/serving.py                                  # stage-2 CNN, 250 px
    python benchmarks/serving.py --backbone=resnet50              # a heavier model
    python benchmarks/serving.py --server=localhost:8500 --rest_server=localhost:8501

The model has random weights, which cost the same. Beside the server stand the bare graph called in
a process of its own, Keras's `model.predict`, a FastAPI endpoint around it and, where an address is
given, a real TensorFlow Serving that serves the same version (`--keep=DIR` writes it there). The
clients run on the same machine and take their share of its processors.
"""

import base64
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import load
import machine

from tfds_pap import commands

# From here on `serving` is the package and not this script.
sys.path[:] = [place for place in sys.path if place != sys.path[0]]

_BACKBONE = flags.DEFINE_string(
    "backbone", None, "Backbone to serve (default: none, the papers' stage-2 CNN)."
)
_CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Clients (default: 1,8,64).")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Seconds a row (default: 5).", lower_bound=0.1)
_SERVER = flags.DEFINE_string("server", None, "host:port of a real server's gRPC (default: none).")
_REST_SERVER = flags.DEFINE_string(
    "rest_server", None, "host:port of a real server's REST (default: none)."
)
_KEEP = flags.DEFINE_string(
    "keep", None, "Keep the served versions below this folder (default: none)."
)

_NAME = "pap_stage2"
_BATCH = 32
_LABELS = ("NILM", "LSIL", "HSIL", "SCC")


def main(argv: list[str]) -> None:
    """Writes a version, measures the bare graph, then every server, and prints the table."""
    del argv
    commands.prepare_tensorflow()
    print(machine.describe())
    with contextlib.ExitStack() as stack:
        place = Path(_KEEP.value or stack.enter_context(tempfile.TemporaryDirectory()))
        size = _write(place)
        bodies = _requests()
        bare = _in_a_process(_bare_graph, place, bodies["image"], _SECONDS.value)
        _row("bare graph, 1 image", bare["one"])
        _row(f"bare graph, batches of {_BATCH}", bare["batch"])
        _row(f"bare graph, batches of {_BATCH}, 2 callers", bare["batches"])
        predicted = _in_a_process(_model_predict, place, bodies["image"], _SECONDS.value)
        _row("model.predict, 1 image", predicted)
        path = f"/v1/models/{_NAME}:predict"
        rows = {}
        for batching in (False, True):
            words = ", batching" if batching else ""
            with _server(place, batching) as (grpc_port, rest_port):
                for clients in map(int, _CLIENTS.value):
                    for transport, port in (("grpc", grpc_port), ("http", rest_port)):
                        found = _load(transport, f"localhost:{port}", path, bodies, clients)
                        rows[transport, batching, clients] = found
                        name = {"grpc": "gRPC", "http": "REST"}[transport]
                        _row(f"{name}, {clients} client{'s' * (clients > 1)}{words}", found)
        with _fastapi(place, size) as port:
            for clients in map(int, _CLIENTS.value):
                found = _load("fastapi", f"localhost:{port}", "/predict", bodies, clients)
                _row(f"FastAPI, {clients} client{'s' * (clients > 1)}", found)
        for transport, address in (("grpc", _SERVER.value), ("http", _REST_SERVER.value)):
            for clients in map(int, _CLIENTS.value) if address else ():
                found = _load(transport, address, path, bodies, clients)
                _row(f"{address} ({transport}), {clients} client{'s' * (clients > 1)}", found)
    _conclude(rows, bare)


def _conclude(rows: dict, bare: dict) -> None:
    fewest, most = (function(map(int, _CLIENTS.value)) for function in (min, max))
    for transport, name in (("grpc", "gRPC"), ("http", "REST")):
        one = rows[transport, False, fewest].p50
        print(
            f"{name} adds {one - bare['one'].p50:.2f} ms to the bare graph's median "
            f"({one / bare['one'].p50:.2f} times as long), {_count(fewest)}"
        )
        throughput = rows[transport, True, most].requests_per_second
        best = max(bare["batch"], bare["batches"], key=lambda found: found.requests_per_second)
        share = throughput / best.requests_per_second
        print(
            f"{name} with batching, {most} clients: {100 * share:.0f} % of the bare graph's "
            f"best throughput in batches of {_BATCH}; the clients kept "
            f"{rows[transport, True, most].processors:.2f} of {os.cpu_count()} processors busy"
        )


def _write(place: Path) -> int:
    """Writes the `.keras` model and its served version; returns the input's size."""
    import keras

    from replication.learning import models
    from serving.model import graph

    if _BACKBONE.value is None:
        model = models.stage2_cnn("clean")
    else:
        found = models.backbone(_BACKBONE.value)
        network = found.build(found.size)
        extractor = models.feature_extractor(network, found.size, found.preprocessing)
        model = models.classifier(extractor, models.head(extractor.output.shape[-1], 4))
    size = model.inputs[0].shape[1]
    place.mkdir(parents=True, exist_ok=True)
    model.save(place / "model.keras")
    decision = graph.Decision(_LABELS, 1.5, 0.5)
    graph.Graph(model, "bilinear", decision).save(place / _NAME / "1")
    print(f"{model.name}, {model.count_params():,} parameters, {size} px")
    keras.backend.clear_session()
    return size


def _requests() -> dict[str, bytes]:
    """The same drawn cell for everyone, in each protocol's words."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from tfds_pap import phantom, phantom_set

    image = phantom_set.encode(phantom.draw_cell("LSIL", 0))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = _NAME
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(np.array([image], object)))
    rows = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    return {
        "image": image,
        "grpc": request.SerializeToString(),
        "http": json.dumps(rows).encode(),
        "fastapi": image,
    }


def _in_a_process(function: Callable, *arguments: object) -> object:
    """In a fresh process, so that no thread pool is left over from the one before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _bare_graph(place: Path, image: bytes, seconds: float) -> dict[str, load.Load]:
    commands.prepare_tensorflow()
    import numpy as np

    from serving.server.servable import Servable

    servable = Servable.load(_NAME, 1, place / _NAME / "1")

    def timed(count: int, callers: int) -> load.Load:
        encoded = {"image_bytes": np.array([image] * count, object)}
        return _timed(lambda: servable.run("", encoded), count, seconds, callers)

    # Of several callers one decodes while another computes, as under a server.
    return {"one": timed(1, 1), "batch": timed(_BATCH, 1), "batches": timed(_BATCH, 2)}


def _model_predict(place: Path, image: bytes, seconds: float) -> load.Load:
    commands.prepare_tensorflow()
    import keras

    from tfds_pap import pipeline

    model = keras.saving.load_model(place / "model.keras")
    size = model.inputs[0].shape[1]

    def predict() -> None:
        pixels = pipeline.decode_and_resize(image, size).numpy()
        model.predict(pixels[None], verbose=0)

    return _timed(predict, 1, seconds)


def _timed(call: Callable[[], object], images: int, seconds: float, callers: int = 1) -> load.Load:
    for _ in range(3):
        call()
    start = time.perf_counter()
    end = start + seconds

    def caller(_: int) -> list[float]:
        latencies = []
        while (before := time.perf_counter()) < end:
            call()
            latencies.append(1000 * (time.perf_counter() - before))
        return latencies

    with futures.ThreadPoolExecutor(callers) as pool:
        latencies = sorted(itertools.chain(*pool.map(caller, range(callers))))
    return load.Load(
        p50=latencies[len(latencies) // 2],
        p99=latencies[int(0.99 * (len(latencies) - 1))],
        requests_per_second=images * len(latencies) / (time.perf_counter() - start),
        failed=0,
    )


def _load(transport: str, address: str, path: str, bodies: dict, clients: int) -> load.Load:
    kind = "grpc" if transport == "grpc" else "http"
    return _in_a_process(
        load.measure, kind, address, path, bodies[transport], clients, _SECONDS.value
    )


@contextlib.contextmanager
def _server(place: Path, batching: bool) -> Iterator[tuple[int, int]]:
    grpc_port, rest_port = _free_port(), _free_port()
    command = [
        *(sys.executable, "-m", "serving.server", f"--serving_dir={place / _NAME}"),
        *(f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--nopage"),
    ]
    if batching:
        parameters = place / "batching.config"
        parameters.write_text(
            f"max_batch_size {{ value: {_BATCH} }}\nbatch_timeout_micros {{ value: 10000 }}\n"
            "max_enqueued_batches { value: 1000 }\nnum_batch_threads { value: 2 }\n"
        )
        command += ["--enable_batching", f"--batching_parameters_file={parameters}"]
    with _running(command, rest_port, f"/v1/models/{_NAME}"):
        yield grpc_port, rest_port


@contextlib.contextmanager
def _fastapi(place: Path, size: int) -> Iterator[int]:
    port = _free_port()
    script = Path(__file__).with_name("fastapi_endpoint.py")
    command = [sys.executable, str(script), str(place / "model.keras"), str(size), str(port)]
    with _running(command, port, "/"):
        yield port


@contextlib.contextmanager
def _running(command: list[str], port: int, path: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("localhost", port, timeout=5)
                connection.request("GET", path)
                answer = connection.getresponse()
                if answer.status == 200 and b"LOADING" not in answer.read():
                    break
            if process.poll() is not None:
                raise SystemExit(f"benchmarks/serving: {' '.join(command[1:4])} ended")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _count(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


def _row(name: str, found: load.Load) -> None:
    failed = f"  {found.failed} failed" if found.failed else ""
    print(
        f"{name:<40}p50 {found.p50:8.2f} ms   p99 {found.p99:8.2f} ms   "
        f"{found.requests_per_second:8.1f} images/s{failed}",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
