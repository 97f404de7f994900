"""What must hold of a ModelServerConfig before a model is touched."""

import grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import ServingError, invalid


def models(
    config: model_server_config_pb2.ModelServerConfig,
) -> dict[str, model_server_config_pb2.ModelConfig]:
    """The configured models by name, as copies of the messages.

    Raises:
        ServingError: FAILED_PRECONDITION for anything but a model_config_list, INVALID_ARGUMENT
            for a model without name or base path, listed twice, of another platform than
            "tensorflow", or of a specific policy without versions.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another.",
        )
    models_by_name: dict[str, model_server_config_pb2.ModelConfig] = {}
    for position, model in enumerate(config.model_config_list.config):
        if not model.name or not model.base_path:
            raise invalid(
                f"model_config_list: config {position}: expected a name and a base_path, "
                f"got name {model.name!r} and base_path {model.base_path!r}"
            )
        if model.name in models_by_name:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(
                f"Model {model.name} requests unsupported platform {model.model_platform}"
            )
        policy = model.model_version_policy
        if policy.WhichOneof("policy_choice") == "specific" and not policy.specific.versions:
            raise invalid(f"model {model.name}: model_version_policy: specific: expected versions")
        models_by_name[model.name] = model_server_config_pb2.ModelConfig()
        models_by_name[model.name].CopyFrom(model)
    return models_by_name
