"""The client's requests over gRPC."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from serving.client import transport, wire
from serving.client.wire import MESSAGES

_STRING = wire.DTYPES.index("DT_STRING")

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Retries shall reach for the server again, not be told how an earlier attempt ended.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcTransport:
    """Speaks to one server; see `transport.Transport`.

    Args:
        server: "host:port".
        token: Bearer token; None for none.
        tls: See `serving.client.Client`.
    """

    def __init__(self, server: str, *, token: str | None, tls: bool | str | Path) -> None:
        if tls is False:
            self._channel = grpc.insecure_channel(server, _OPTIONS)
        else:
            roots = None if tls is True else Path(tls).read_bytes()
            credentials = grpc.ssl_channel_credentials(roots)
            self._channel = grpc.secure_channel(server, credentials, _OPTIONS)
        self._headers = [] if token is None else [("authorization", f"Bearer {token}")]

    def predict(
        self, target: transport.Target, signature: str, images: Sequence[bytes], timeout: float
    ) -> tuple[dict[str, Any], int | None]:
        """Sends the images in one request; see `transport.Transport`."""
        shape = {"dim": [{"size": len(images)}]}
        tensor = {"dtype": _STRING, "tensor_shape": shape, "string_val": images}
        response = self._call(
            "PredictionService/Predict",
            model_spec=_model_spec(target, signature),
            inputs=[{"key": transport.IMAGE_INPUT, "value": tensor}],
            timeout=timeout,
        )
        outputs = {entry.key: wire.array(entry.value) for entry in response.outputs}
        spec = response.model_spec
        return outputs, spec.version.value if spec.HasField("version") else None

    def class_names(
        self, target: transport.Target, image: bytes, timeout: float
    ) -> tuple[str, ...]:
        """Asks for the names of the classes; see `transport.Transport`."""
        feature = {"key": transport.EXAMPLE_FEATURE, "value": {"bytes_list": {"value": [image]}}}
        example = {"features": {"feature": [feature]}}
        response = self._call(
            "PredictionService/Classify",
            message="Classification",
            model_spec=_model_spec(target, transport.CLASSIFY),
            input={"example_list": {"examples": [example]}},
            timeout=timeout,
        )
        return tuple(
            each.label for rows in response.result.classifications[:1] for each in rows.classes
        )

    def metadata(self, target: transport.Target, timeout: float) -> transport.ModelMetadata:
        """Asks for the signatures; see `transport.Transport`."""
        response = self._call(
            "PredictionService/GetModelMetadata",
            model_spec=_model_spec(target),
            metadata_field=["signature_def"],
            timeout=timeout,
        )
        (packed,) = (each.value for each in response.metadata if each.key == "signature_def")
        signatures = MESSAGES["SignatureDefMap"].FromString(packed.value)
        return transport.ModelMetadata(
            response.model_spec.name,
            response.model_spec.version.value,
            {
                each.key: transport.Signature(
                    _tensors(each.value.inputs), _tensors(each.value.outputs)
                )
                for each in signatures.signature_def
            },
        )

    def status(self, target: transport.Target, timeout: float) -> list[transport.VersionStatus]:
        """Asks for the versions; see `transport.Transport`."""
        response = self._call(
            "ModelService/GetModelStatus", model_spec=_model_spec(target), timeout=timeout
        )
        return [
            transport.VersionStatus(
                each.version, wire.STATES.get(each.state, "UNKNOWN"), each.status.error_message
            )
            for each in response.model_version_status
        ]

    def close(self) -> None:
        """Cancels what is under way and closes the channel."""
        self._channel.close()

    def _call(self, method: str, *, timeout: float, message: str = "", **fields: Any) -> Any:
        """Calls a method, whose request has these fields, and returns its response."""
        name = message or method.partition("/")[2]
        request = MESSAGES[f"{name}Request"]
        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request.SerializeToString,
            MESSAGES[f"{name}Response"].FromString,
        )
        with _client_errors():
            return call(request(**fields), timeout, self._headers)


def _model_spec(target: transport.Target, signature: str = "") -> Any:
    spec = MESSAGES["ModelSpec"](name=target.model, signature_name=signature)
    if target.version is not None:
        spec.version.value = target.version
    elif target.label is not None:
        spec.version_label = target.label
    return spec


def _tensors(infos: Iterable[Any]) -> dict[str, transport.Tensor]:
    tensors = {}
    for each in infos:
        shape = each.value.tensor_shape
        sizes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
        tensors[each.key] = transport.Tensor(
            wire.dtype_name(each.value.dtype), None if shape.unknown_rank else sizes
        )
    return tensors


@contextlib.contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise transport.ClientError(error.code(), error.details() or "") from error
    except ValueError as error:
        # What grpcio says of a channel that was closed in another thread.
        raise transport.ClientError(grpc.StatusCode.CANCELLED, str(error)) from error
