"""A server with the page alone: a manager that holds one fake version, over real HTTP."""

import contextlib
import io
import json
import socket
import threading
import time

import grpc
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_status_pb2

from serving.server.errors import ServingError
from serving.server.page import app as page
from serving.server.rest import bodies

LABELS = ["NILM", "LSIL", "HSIL", "SCC"]
BANNER = "These are not the papers' images: DB_4 has other counts than published."
SIZE = 64
LIMIT = 200_000
TOKEN = "s3cret"


def estimate(value, low, high, count=385, method="Wilson"):
    return {"value": value, "low": low, "high": high, "count": count, "method": method}


def metadata_values():
    """As serving.export writes it."""
    return {
        "format": 1,
        "model": {
            "name": "fine-tuned mobilenetv2",
            "stage": 2,
            "protocol": "clean",
            "seed": 0,
            "parameters": 2304228,
            "input_size": SIZE,
            "resize": "bilinear",
            "feature_layer": "features",
        },
        "labels": LABELS,
        "calibration": {"temperature": 2.83, "note": "The temperature 2.83 was fitted on 223."},
        "abstention": {"threshold": 0.494, "target": 0.9, "note": "The threshold is the highest."},
        "limits": {"max_pixels": 2**24, "max_batch": 256, "formats": ["JPEG", "PNG", "BMP"]},
        "metrics": {
            "accuracy": estimate(0.7662, 0.7215, 0.8058),
            "accuracy_by_group": estimate(0.7662, 0.7089, 0.8245, method="bootstrap of groups"),
            "balanced_accuracy": estimate(0.5627, 0.5315, 0.6046, method="bootstrap of groups"),
            "hsil_plus_sensitivity": estimate(0.9398, 0.8666, 0.974, 83),
            "hsil_plus_specificity": estimate(None, None, None, 0, "undefined: no image to count"),
            "per_class": {
                label: {"sensitivity": estimate(0.5, 0.4, 0.6, count), "support": count}
                for label, count in zip(LABELS, (200, 102, 75, 8), strict=True)
            },
        },
        "announcement": BANNER,
        "intended_use": "Research software, not a medical device: to repeat experiments.",
        "audit": ["audit of pap_db4: 0 of 385 validation images have a twin in train"],
        "run": {},
        "exported": {"time": "2026-11-22T20:18:15+00:00"},
    }


class FakeServable:
    """Answers by the mean colour of the image, so that a test knows what is right."""

    name = "pap_stage2"

    def __init__(self, folder, version=1, *, metadata=None, endpoints=("explain",), outputs=()):
        self.version, self.path = version, folder / str(version)
        self.outputs = {"probabilities", "label", *outputs}
        self.meta_graph = meta_graph_pb2.MetaGraphDef()
        for key in endpoints:
            signature = self.meta_graph.signature_def[key]
            signature.inputs["image_bytes"].name = "image_bytes:0"
            for name in self.outputs:
                signature.outputs[name].name = f"{name}:0"
        self.calls, self.failure = [], None
        if metadata is not None:
            text = metadata if isinstance(metadata, str) else json.dumps(metadata)
            (self.path / "assets.extra").mkdir(parents=True)
            (self.path / "assets.extra" / "metadata.json").write_text(text)

    def run(self, key, inputs, output_filter=(), *, timeout=None):
        self.calls.append((key, timeout))
        if self.failure:
            raise self.failure
        (data,) = inputs["image_bytes"]
        try:
            picture = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE))
        except OSError:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "image: expected JPEG, PNG, BMP",
            ) from None
        pixels = np.asarray(picture, np.float32)
        odds = np.exp([1.2, *pixels.mean(axis=(0, 1)) / 64 - 1.7])
        probabilities = (odds / odds.sum()).astype(np.float32)
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
        answer = {
            "probabilities": probabilities,
            "label": LABELS[probabilities.argmax()].encode(),
            "class_id": probabilities.argmax(),
            "hsil_plus": np.float32(0.9 * probabilities[2:].sum()),
            "abstain": np.int64(probabilities.max() < 0.5),
            "image": pixels,
            "heat": np.exp(-12 * (x**2 + y**2)).astype(np.float32),
        }
        return {name: np.array([answer[name]]) for name in self.outputs}


EXPLAINS = ("hsil_plus", "abstain", "class_id", "image", "heat")


class FakeManager:
    """One model, whose version a test may change."""

    def __init__(self, servable):
        self.servable = servable

    @contextlib.contextmanager
    def use(self, spec):
        if self.servable is None:
            text = f"Servable not found for request: Latest({spec.name})"
            raise ServingError(grpc.StatusCode.NOT_FOUND, text)
        yield self.servable

    def status(self, spec):
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=self.servable.version, state="AVAILABLE")
        return answer


class Bearer:
    """Lets in who has the token; the page itself is open."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get("headers", ()))
        if scope.get("path") == "/" or headers.get(b"authorization") == f"Bearer {TOKEN}".encode():
            return await self.app(scope, receive, send)
        return await JSONResponse({"error": "no token"}, 401)(scope, receive, send)


@contextlib.contextmanager
def serving(servable, *, timeout=5.0, middleware=(), admission=None):
    """A server, and where it is."""
    manager = FakeManager(servable)
    routes = page.routes(
        manager,
        model_name="pap_stage2",
        admission=admission,
        bodies=bodies.Bodies(LIMIT),
        timeout=timeout,
    )
    app = Starlette(routes=routes, middleware=[Middleware(each) for each in middleware])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        manager.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        try:
            while not server.started:
                time.sleep(0.005)
            yield manager
        finally:
            server.should_exit = True
            thread.join()


def png(colour=(200, 90, 120), size=(90, 70)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()
