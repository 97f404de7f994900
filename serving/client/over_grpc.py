"""The client's requests over gRPC.

The official messages import the whole of TensorFlow, some seconds; the REST transport does not.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client import transport

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
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self, target: transport.Target, signature: str, images: Sequence[bytes], timeout: float
    ) -> tuple[dict[str, Any], int | None]:
        """Sends the images in one request; see `transport.Transport`."""
        request = predict_pb2.PredictRequest(model_spec=_model_spec(target, signature))
        tensor = request.inputs[transport.IMAGE_INPUT]
        tensor.dtype = types_pb2.DT_STRING
        tensor.tensor_shape.dim.add(size=len(images))
        tensor.string_val.extend(images)
        with _client_errors():
            response = self._prediction.Predict(request, timeout, self._headers)
        outputs = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
        spec = response.model_spec
        return outputs, spec.version.value if spec.HasField("version") else None

    def metadata(self, target: transport.Target, timeout: float) -> transport.ModelMetadata:
        """Asks for the signatures; see `transport.Transport`."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_model_spec(target), metadata_field=["signature_def"]
        )
        with _client_errors():
            response = self._prediction.GetModelMetadata(request, timeout, self._headers)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return transport.ModelMetadata(
            response.model_spec.name,
            response.model_spec.version.value,
            {
                name: transport.Signature(_tensors(signature.inputs), _tensors(signature.outputs))
                for name, signature in signatures.signature_def.items()
            },
        )

    def status(self, target: transport.Target, timeout: float) -> list[transport.VersionStatus]:
        """Asks for the versions; see `transport.Transport`."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=_model_spec(target))
        with _client_errors():
            response = self._model.GetModelStatus(request, timeout, self._headers)
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [
            transport.VersionStatus(
                version.version, state_name(version.state), version.status.error_message
            )
            for version in response.model_version_status
        ]

    def close(self) -> None:
        """Cancels what is under way and closes the channel."""
        self._channel.close()


def _model_spec(target: transport.Target, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=target.model, signature_name=signature)
    if target.version is not None:
        spec.version.value = target.version
    elif target.label is not None:
        spec.version_label = target.label
    return spec


def _tensors(infos: dict[str, meta_graph_pb2.TensorInfo]) -> dict[str, transport.Tensor]:
    return {
        name: transport.Tensor(
            types_pb2.DataType.Name(info.dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
        )
        for name, info in infos.items()
    }


@contextlib.contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise transport.ClientError(error.code(), error.details() or "") from error
    except ValueError as error:
        # What grpcio says of a channel that was closed in another thread.
        raise transport.ClientError(grpc.StatusCode.CANCELLED, str(error)) from error
