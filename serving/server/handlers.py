"""The requests of TensorFlow Serving's two services, answered without a transport.

Official messages in, official messages out; what fails is a `ServingError` with the code and the
beginning of the words of the real server. gRPC, REST and the warm-up share these functions.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server import tensor_protos
from serving.server.endpoint import DEFAULT_SIGNATURE
from serving.server.errors import MESSAGE_LIMIT, ServingError, invalid

if TYPE_CHECKING:
    from serving.server.manager import Manager
    from serving.server.servable import Servable


Answer = Callable[..., Any]

_UNREAD = np.empty(0)


def predict_with(
    servable: "Servable", request: predict_pb2.PredictRequest, *, timeout: float | None = None
) -> predict_pb2.PredictResponse:
    """Any signature's inputs to its outputs, of which `output_filter` chooses.

    Args:
        servable: Answers, whatever version the request names.
        request: Of PredictionService.Predict.
        timeout: Seconds after which the run is cancelled.

    Raises:
        ServingError: As the real server fails.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    # The signature comes before the tensors, as in the real server. What it does not have is not
    # read, only named in the error: there may be a million of it.
    expected = servable.signature(key).inputs
    inputs = {
        name: tensor_protos.to_array(proto, name) if name in expected else _UNREAD
        for name, proto in request.inputs.items()
    }
    outputs = servable.run(key, inputs, request.output_filter, timeout=timeout)
    response = predict_pb2.PredictResponse()
    _fill_model_spec(response.model_spec, servable, key)
    for name, array in outputs.items():
        tensor_protos.fill(response.outputs[name], array)
    return response


def classify_with(
    servable: "Servable",
    request: classification_pb2.ClassificationRequest,
    *,
    timeout: float | None = None,
) -> classification_pb2.ClassificationResponse:
    """tf.Examples to labels and scores; see `predict_with`."""
    key, signature = _example_signature(servable, request.model_spec)
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise _failed(f"No classification inputs found in SignatureDef: {signature}")
    wanted = [name for name in ("classes", "scores") if name in signature.outputs]
    if not wanted:
        raise _failed(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )
    examples = _serialized_examples(request.input)
    outputs = servable.run(key, {"inputs": examples}, wanted, timeout=timeout)
    for name, array in outputs.items():
        dtype = np.dtype(object if name == "classes" else np.float32)
        if array.ndim != 2:
            raise invalid(
                "Expected Tensor shape: [batch_size num_classes] but got "
                f"{tensor_protos.shape_text(array.shape)}"
            )
        if array.dtype != dtype:
            raise invalid(f"Expected {name} Tensor of {dtype}. Got: {array.dtype}")
        if len(array) != len(examples):
            raise invalid(
                f"Expected {name} output batch size of {len(examples)}. Got: {len(array)}"
            )
    if len({array.shape for array in outputs.values()}) > 1:
        raise invalid("Tensors class and score should match in dim_size(1).")
    response = classification_pb2.ClassificationResponse()
    _fill_model_spec(response.model_spec, servable, key)
    for row in range(len(examples)):
        added = response.result.classifications.add()
        for column in range(outputs[wanted[0]].shape[1]):
            entry = added.classes.add()
            if "classes" in outputs:
                entry.label = _text(outputs["classes"][row, column])
            if "scores" in outputs:
                entry.score = outputs["scores"][row, column]
    return response


def regress_with(
    servable: "Servable",
    request: regression_pb2.RegressionRequest,
    *,
    timeout: float | None = None,
) -> regression_pb2.RegressionResponse:
    """tf.Examples to one number each; see `predict_with`."""
    key, signature = _example_signature(servable, request.model_spec)
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise _failed(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise _failed(f"No regression outputs found in SignatureDef: {signature}")
    examples = _serialized_examples(request.input)
    values = servable.run(key, {"inputs": examples}, timeout=timeout)["outputs"]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{tensor_protos.shape_text(values.shape)}"
        )
    if len(values) != len(examples):
        raise invalid(
            f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of float32. Got: {values.dtype}")
    response = regression_pb2.RegressionResponse()
    _fill_model_spec(response.model_spec, servable, key)
    for value in values.ravel():
        response.result.regressions.add(value=value)
    return response


def _by_named_version(answer: Answer) -> Answer:
    """Lets the version that a request names answer it."""

    def answered(manager: "Manager", request: Any, *, timeout: float | None = None) -> Any:
        with manager.use(_model_spec(request)) as servable:
            return answer(servable, request, timeout=timeout)

    return answered


#: PredictionService's calls: a manager, a request and seconds to the response.
predict = _by_named_version(predict_with)
classify = _by_named_version(classify_with)
regress = _by_named_version(regress_with)


def get_model_metadata(
    manager: "Manager", request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """PredictionService.GetModelMetadata: the signatures of a version.

    Raises:
        ServingError: As the real server fails.
    """
    spec = _model_spec(request)
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    with manager.use(spec) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, signature in servable.meta_graph.signature_def.items():
            signatures.signature_def[key].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
    return response


def get_model_status(
    manager: "Manager", request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    """ModelService.GetModelStatus: the state of one version or of all, newest first.

    Raises:
        ServingError: As the real server fails.
    """
    return manager.status(_model_spec(request))


def reload_config(
    manager: "Manager", request: model_management_pb2.ReloadConfigRequest
) -> model_management_pb2.ReloadConfigResponse:
    """ModelService.HandleReloadConfigRequest: other models, policies or labels from now on.

    Raises:
        ServingError: If the config is refused; then everything stays as it was.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    manager.reload(request.config)
    response = model_management_pb2.ReloadConfigResponse()
    # Set, so that an OK status is sent and not an absent one.
    response.status.SetInParent()
    return response


def _model_spec(request: Any) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def _fill_model_spec(spec: model_pb2.ModelSpec, servable: "Servable", key: str) -> None:
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = key


def _example_signature(
    servable: "Servable", spec: model_pb2.ModelSpec
) -> tuple[str, meta_graph_pb2.SignatureDef]:
    key = spec.signature_name or DEFAULT_SIGNATURE
    if key not in servable.meta_graph.signature_def:
        raise invalid(f"No signature was found with the name: {key}")
    signature = servable.signature(key)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    return key, signature


def _serialized_examples(request_input: input_pb2.Input) -> np.ndarray:
    kind = request_input.WhichOneof("kind")
    listed = getattr(request_input, kind) if kind else input_pb2.ExampleList()
    # Two serialized messages, one after the other, are the merged message.
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    serialized = [context + example.SerializeToString() for example in listed.examples]
    if not serialized:
        raise invalid("Input is empty.")
    return np.array(serialized, object)


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise invalid(f"Expected classes in UTF-8, got {label[:32]!r}") from None


def _failed(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, message[:MESSAGE_LIMIT])
