"""The server's REST front: TensorFlow Serving's routes, bodies and status codes."""

import asyncio
import contextlib
import functools
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import json_format, message
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from serving.server import bearer, handlers, monitoring
from serving.server.admission import Admission
from serving.server.errors import HTTP_STATUS, MESSAGE_LIMIT, ServingError, invalid
from serving.server.manager import Manager
from serving.server.monitoring import Metrics
from serving.server.rest import examples, json_text, predict_json
from serving.server.rest.bodies import Bodies, TooLongError
from serving.server.rest.names import Names

_ROUTE = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_MODEL = r"/([^/:]+)"
_VERSION = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_RUN = re.compile(rf"/v1/models{_MODEL}{_VERSION}:(classify|regress|predict)")
_LOOK = re.compile(rf"/v1/models(?:{_MODEL})?{_VERSION}(?:/(metadata))?")

_LARGEST_VERSION = 2**63 - 1

#: Threads for requests that run no model, beside those for the requests at work.
_OTHER_THREADS = 4

#: Bytes from which on a body is a large one.
_LARGE_BODY = 2**20

_large_bodies = threading.Lock()

_NOT_FOUND = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n"
    b"</BODY></HTML>\n"
)

_log = logging.getLogger(__name__)


def app(
    manager: Manager,
    *,
    admission: Admission,
    metrics: Metrics,
    max_request_bytes: int,
    timeout: float | None,
    token: str | None = None,
    prometheus_path: str | None = monitoring.DEFAULT_PATH,
    page_model: str | None = None,
    names: Names | None = None,
) -> Starlette:
    """The ASGI application.

    Args:
        manager: Holds the models.
        admission: Bounds the requests at work.
        metrics: Counts them.
        max_request_bytes: A longer body is refused with 413 and not kept.
        timeout: Seconds that a model has for a request; None for as long as it takes.
        token: Bearer token that every request but that of the page must bring; None for none.
        prometheus_path: Where the metrics are; None for nowhere.
        page_model: The model that the page at / asks; None for no page.
        names: What Host and Origin may be; None: localhost and addresses in digits.
    """
    bodies = Bodies(max_request_bytes)
    routes: list[BaseRoute] = []
    if page_model is not None:
        # Brings matplotlib and the phantoms with it.
        from serving.server.page import app as page

        routes += page.routes(
            manager,
            model_name=page_model,
            admission=admission.place,
            bodies=bodies,
            metrics=metrics,
            timeout=timeout,
        )
    api = _Api(manager, admission, metrics, bodies, timeout, prometheus_path)
    open_paths = frozenset() if page_model is None else frozenset({"/"})
    guard = [Middleware(_NamesGuard, names=names or Names())]
    if token is not None:
        guard.append(Middleware(_Guard, token=token, open_paths=open_paths))
    return Starlette(routes=[*routes, Mount("/", app=api)], middleware=guard)


class _NamesGuard:
    """Lets in what no page of another site can have sent."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._names.check(scope["method"], _header(scope, b"host"), _header(scope, b"origin"))
        except ServingError as error:
            await _error(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Guard:
    """Lets in who has the token."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str]) -> None:
        self._app = app
        self._token = token
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        header = _header(scope, b"authorization")
        if scope["path"] in self._open_paths or bearer.matches(header, self._token):
            await self._app(scope, receive, send)
            return
        refusal = _error(
            ServingError(
                grpc.StatusCode.UNAUTHENTICATED,
                "Expected the header Authorization: Bearer <the server's token>",
            )
        )
        refusal.headers["www-authenticate"] = "Bearer"
        await refusal(scope, receive, send)


class _Api:
    """Everything but the page."""

    def __init__(
        self,
        manager: Manager,
        admission: Admission,
        metrics: Metrics,
        bodies: Bodies,
        timeout: float | None,
        prometheus_path: str | None,
    ) -> None:
        self._manager = manager
        self._admission = admission
        self._metrics = metrics
        self._bodies = bodies
        self._timeout = timeout
        self._prometheus_path = prometheus_path
        # As many as there are places, so that no request that has one waits for a thread.
        self._threads = futures.ThreadPoolExecutor(
            admission.limit + _OTHER_THREADS, thread_name_prefix="rest"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except Exception as error:
            answer = _error(error)
        if answer is not None:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        method, target = scope["method"], scope["raw_path"].decode("ascii", "replace")
        if target == self._prometheus_path and method in ("GET", "HEAD"):
            return _response(200, self._metrics.page(), monitoring.CONTENT_TYPE)
        if not _ROUTE.fullmatch(target):
            return _response(404, _NOT_FOUND, "text/html")
        query = scope["query_string"].decode("ascii", "replace")
        if method == "POST" and not query and (match := _RUN.fullmatch(target)):
            return await self._run(match, scope, receive)
        if method == "GET" and not query and (match := _LOOK.fullmatch(target)):
            look = _metadata if match[4] else _status
            return _response(200, await self._in_thread(look, self._manager, _model_spec(match)))
        target += f"?{query}" if query else ""
        raise invalid(f"Malformed request: {method} {target}")

    async def _run(self, match: re.Match[str], scope: Scope, receive: Receive) -> Response | None:
        spec, api = _model_spec(match), match[4]
        try:
            body = await self._bodies.read(scope, receive)
        except TooLongError as error:
            return _response(413, json_text.dump({"error": str(error)}))
        if body is None:
            return None
        # Only now, so that whoever sends slowly takes nobody's place.
        with self._metrics.counted(spec.name, api, "REST"), self._admission.place():
            return _response(
                200, await self._in_thread(_APIS[api], self._manager, spec, body, self._timeout)
            )

    async def _in_thread(self, function: Callable[..., bytes], *arguments: Any) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)


# -- In a thread ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _one_large_body(body: bytes, timeout: float | None) -> Iterator[None]:
    """One large body at a time: as Python objects it takes up to thirty times its bytes."""
    if len(body) <= _LARGE_BODY:
        yield
        return
    if not _large_bodies.acquire(timeout=-1 if timeout is None else timeout):
        raise ServingError(
            grpc.StatusCode.DEADLINE_EXCEEDED, "Other large requests are still being read."
        )
    try:
        yield
    finally:
        _large_bodies.release()


def _predict(
    manager: Manager, spec: model_pb2.ModelSpec, body: bytes, timeout: float | None
) -> bytes:
    with contextlib.ExitStack() as held:
        with _one_large_body(body, timeout):
            document = json_text.parse(body)
            # The real server reads the name before it looks for the model.
            predict_json.signature_name(document)
            servable = held.enter_context(manager.use(spec))
            call = predict_json.parse_predict(document, servable.meta_graph.signature_def)
            del document
        outputs = servable.run(call.signature_name, call.inputs, timeout=timeout)
    return predict_json.format_predict(outputs, call.row_form)


def _by_examples(
    request_class: Callable[..., Any],
    answer: Callable[..., Any],
    write: Callable[[Any], bytes],
    manager: Manager,
    spec: model_pb2.ModelSpec,
    body: bytes,
    timeout: float | None,
) -> bytes:
    request = request_class(model_spec=spec)
    with _one_large_body(body, timeout):
        document = json_text.parse(body)
        request.model_spec.signature_name = predict_json.signature_name(document)
        request.input.CopyFrom(examples.parse_examples(document))
        del document
    return write(answer(manager, request, timeout=timeout))


_APIS: dict[str, Callable[..., bytes]] = {
    "predict": _predict,
    "classify": functools.partial(
        _by_examples,
        *(classification_pb2.ClassificationRequest, handlers.classify, examples.format_classify),
    ),
    "regress": functools.partial(
        _by_examples,
        *(regression_pb2.RegressionRequest, handlers.regress, examples.format_regress),
    ),
}


def _status(manager: Manager, spec: model_pb2.ModelSpec) -> bytes:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
    return json_text.dump(_as_json(handlers.get_model_status(manager, request)))


def _metadata(manager: Manager, spec: model_pb2.ModelSpec) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=spec, metadata_field=["signature_def"]
    )
    response = handlers.get_model_metadata(manager, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return json_text.dump(
        {
            "model_spec": _as_json(response.model_spec),
            "metadata": {"signature_def": _as_json(signatures)},
        }
    )


def _as_json(proto: message.Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


# -- HTTP ----------------------------------------------------------------------------------------


def _model_spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    name, version, label = match[1], match[2], match[3]
    if name is None:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(name))
    if version is not None:
        # Length first: whole pages of digits are no number to anybody.
        if len(version.lstrip("0")) > len(str(_LARGEST_VERSION)) or int(version) > _LARGEST_VERSION:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    elif label is not None:
        spec.version_label = urllib.parse.unquote(label)
    return spec


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _error(error: Exception) -> Response:
    """Of what nobody expected, the client is told nothing but that."""
    if isinstance(error, ServingError):
        status, text = HTTP_STATUS.get(error.code, 500), error.message
    else:
        _log.error("a request failed", exc_info=error)
        status, text = 500, "Internal error; the server's log has it."
    response = _response(status, json_text.dump({"error": text[:MESSAGE_LIMIT]}))
    if status in (429, 503):
        response.headers["retry-after"] = "1"
    return response


def _response(status: int, body: bytes, content_type: str = "application/json") -> Response:
    headers = {
        "content-type": content_type,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    return Response(body, status, headers)
