"""The server's gRPC front: TensorFlow Serving's two services, and gRPC's own health service."""

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor, message_factory
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server import bearer, config_source, connections, handlers, listening
from serving.server.admission import Admission
from serving.server.errors import MESSAGE_LIMIT, ServingError
from serving.server.manager import Manager
from serving.server.monitoring import Metrics

#: Calls that may wait or stream beside the requests at work: health, status, metadata.
_OTHER_CALLS = 64

#: A day; whoever sets no deadline has more than that left.
_LONGEST_SECONDS = 86400.0

#: Messages of the greatest length that may be at work at the same time. One of empty strings takes
#: sixteen times its bytes once it is read.
_TOGETHER = 8

_PREDICTION = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
_MODEL = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
_SERVICES = ("", _PREDICTION.full_name, _MODEL.full_name)

_log = logging.getLogger(__name__)


class GrpcFront:
    """A gRPC server for the models of a manager.

    The health service says SERVING for "" and for both services while every model has a version
    that answers. It asks for no token.

    Args:
        manager: Holds the models; its owner calls `publish_health` when a version has changed.
        host: Address to listen on.
        port: 0 takes a free one.
        admission: Bounds the requests at work.
        metrics: Counts them.
        max_request_bytes: A longer message is refused with RESOURCE_EXHAUSTED.
        threads: Calls that are worked on at the same time.
        token: Bearer token that every call must bring; None for none.
        tls: Certificate chain and private key in PEM; None for none.
        max_connections: Open at the same time; more are closed at once.
        reload_below: Directories of models that a client may ask to be served; None: a client may
            not say what is served.

    Attributes:
        port: Where it listens.

    Raises:
        OSError: If it cannot listen there.
    """

    def __init__(
        self,
        manager: Manager,
        host: str,
        port: int,
        *,
        admission: Admission,
        metrics: Metrics,
        max_request_bytes: int,
        threads: int,
        token: str | None = None,
        tls: tuple[bytes, bytes] | None = None,
        max_connections: int = connections.WANTED,
        reload_below: Sequence[Path] | None = None,
    ) -> None:
        self._manager = manager
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[] if token is None else [_TokenInterceptor(token)],
            maximum_concurrent_rpcs=admission.limit + _OTHER_CALLS,
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second server could listen on the same port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", max_connections),
                # A connection that says nothing at first is closed after that.
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.max_connection_idle_ms", 600_000),
                # A client that went away without a word is noticed after 80 seconds.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        calls = _Calls(manager, admission, metrics)
        memory = _Memory(_TOGETHER * max_request_bytes)
        self._server.add_generic_rpc_handlers(
            [
                _service(_PREDICTION, _PredictionService(calls), memory),
                _service(_MODEL, _ModelService(calls, reload_below), memory),
            ]
        )
        self._health = health.HealthServicer()
        self._published: int | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.publish_health()
        if port:
            # Says what is wrong with it in one line, which gRPC does not.
            listening.bound(host, port).close()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if tls is None:
            self.port: int = self._server.add_insecure_port(address)
        else:
            certificate, key = tls
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            self.port = self._server.add_secure_port(address, credentials)

    def start(self) -> None:
        """Answers from now on."""
        self._server.start()

    def stop(self, seconds: float) -> None:
        """Accepts no more calls; those at work may go on for a while, then they are cancelled."""
        self._health.enter_graceful_shutdown()
        self._server.stop(seconds).wait()

    def publish_health(self) -> None:
        """Tells the clients of the health service whether every model answers."""
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._manager.available() else status.NOT_SERVING
        if now != self._published:
            # Every word goes to all who watch, so only news.
            for service in _SERVICES:
                self._health.set(service, now)
            self._published = now


class _Memory:
    """Counts the bytes of the messages at work and refuses those beyond a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held = 0

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes, which are held now."""
        with self._lock:
            fits = self._held + size <= self._limit
            self._held += size * fits
        return fits

    def give_back(self, size: int) -> None:
        """Frees what was taken."""
        with self._lock:
            self._held -= size


def _service(
    service: descriptor.ServiceDescriptor, servicer: Any, memory: _Memory
) -> grpc.GenericRpcHandler:
    """Like the generated `add_...Servicer_to_server`, but reads no message beyond its memory."""
    methods = {}
    for method in service.methods:
        message, answer = map(
            message_factory.GetMessageClass, (method.input_type, method.output_type)
        )
        methods[method.name] = grpc.unary_unary_rpc_method_handler(
            functools.partial(_read_and_run, getattr(servicer, method.name), message, memory),
            response_serializer=answer.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _read_and_run(
    method: Callable[..., Any],
    message: type[Message],
    memory: _Memory,
    data: bytes,
    context: grpc.ServicerContext,
) -> Any:
    size = len(data)
    if not memory.take(size):
        context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Too many requests are on their way; try again later.",
        )
    try:
        try:
            request = message.FromString(data)
        except DecodeError:
            # In the words of gRPC, which does this as a rule.
            context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
        return method(request, context)
    finally:
        memory.give_back(size)


class _Calls:
    """What every call goes through: a place, a deadline, clean errors, and being counted."""

    def __init__(self, manager: Manager, admission: Admission, metrics: Metrics) -> None:
        self._manager = manager
        self._admission = admission
        self._metrics = metrics

    def run(
        self, function: Callable[..., Any], api: str, request: Any, context: grpc.ServicerContext
    ) -> Any:
        """Answers a request that runs a model."""

        def work() -> Any:
            with (
                self._metrics.counted(request.model_spec.name, api, "GRPC"),
                self._admission.place(),
            ):
                # It may have waited for a thread until its client had gone.
                if not context.is_active():
                    raise ServingError(grpc.StatusCode.CANCELLED, "The client has gone.")
                return function(self._manager, request, timeout=_seconds_left(context))

        return _answered_or_aborted(context, work)

    def look(
        self, function: Callable[..., Any], request: Any, context: grpc.ServicerContext
    ) -> Any:
        """Answers a request that runs no model."""
        return _answered_or_aborted(context, lambda: function(self._manager, request))


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        return self._calls.run(handlers.predict, "Predict", request, context)

    def Classify(
        self, request: classification_pb2.ClassificationRequest, context: grpc.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        return self._calls.run(handlers.classify, "Classify", request, context)

    def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        return self._calls.run(handlers.regress, "Regress", request, context)

    def GetModelMetadata(
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return self._calls.look(handlers.get_model_metadata, request, context)

    def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "MultiInference is not served.")


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, calls: _Calls, reload_below: Sequence[Path] | None) -> None:
        self._calls = calls
        self._reload_below = reload_below

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return self._calls.look(handlers.get_model_status, request, context)

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        if self._reload_below is None:
            # A SavedModel can read and write files: who chooses the model chooses these.
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "HandleReloadConfigRequest is off; --allow_reload_config switches it on.",
            )
        return self._calls.look(self._reload, request, context)

    def _reload(
        self, manager: Manager, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        config_source.check_below(request.config, self._reload_below or ())
        return handlers.reload_config(manager, request)


class _TokenInterceptor(grpc.ServerInterceptor):
    """Refuses calls without the token; health stays open."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._refusal = grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "Expected the metadata authorization: Bearer <the server's token>",
            )
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        header = dict(handler_call_details.invocation_metadata).get("authorization")
        is_open = handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/")
        if is_open or bearer.matches(header, self._token):
            return continuation(handler_call_details)
        return self._refusal


def _seconds_left(context: grpc.ServicerContext) -> float | None:
    left = context.time_remaining()
    return None if left > _LONGEST_SECONDS else left


def _answered_or_aborted(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    """Returns what the work gives, or ends the call with its error.

    Of what nobody expected, the client learns nothing but that. The call ends outside of the
    handling of the error, which would hold the frames that it passed, and so the request, until the
    next collection.
    """
    try:
        return work()
    except ServingError as error:
        failure = ServingError(error.code, error.message)
    except Exception as error:
        _log.error("a request failed", exc_info=error)
        failure = ServingError(grpc.StatusCode.INTERNAL, "Internal error; the server's log has it.")
    # Of bytes, as headers have a limit.
    message = failure.message.encode()[:MESSAGE_LIMIT].decode(errors="ignore")
    return context.abort(failure.code, message)
