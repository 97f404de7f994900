"""TensorFlow Serving's monitoring.config: where the Prometheus metrics are, if anywhere.

`tensorflow.serving.MonitoringConfig` is not in the tensorflow-serving-api wheel, so its descriptor
is built here, as in TensorFlow Serving's tensorflow_serving/config/monitoring_config.proto.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from serving.server import monitoring
from serving.server.errors import invalid


def _message_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name="serving/monitoring_config.proto", package="tensorflow.serving", syntax="proto3"
    )
    prometheus = proto.message_type.add(name="PrometheusConfig")
    for number, (name, kind) in enumerate(
        (("enable", field.TYPE_BOOL), ("path", field.TYPE_STRING)), start=1
    ):
        prometheus.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    proto.message_type.add(name="MonitoringConfig").field.add(
        name="prometheus_config",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.serving.PrometheusConfig",
        label=field.LABEL_OPTIONAL,
    )
    # A pool of its own: another package may bring the official file.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.MonitoringConfig")
    )


#: The official message, for whoever writes such a file.
MonitoringConfig = _message_class()


def read(path: str | Path) -> str | None:
    """Reads a monitoring.config as `--monitoring_config_file` of TensorFlow Serving takes it.

    Returns:
        The path of the metrics' URL; None where they are switched off.

    Raises:
        ServingError: INVALID_ARGUMENT, one line naming the file.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "monitoring.config"
        >>> _ = path.write_text("prometheus_config { enable: true }")
        >>> read(path)
        '/monitoring/prometheus/metrics'
    """
    message = MonitoringConfig()
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), message)
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"{path}: cannot be read: {error}") from None
    except text_format.ParseError as error:
        raise invalid(
            f"{path}: expected a tensorflow.serving.MonitoringConfig in text form: {error}"
        ) from None
    prometheus = message.prometheus_config
    if not prometheus.enable:
        return None
    if prometheus.path and not prometheus.path.startswith("/"):
        raise invalid(f"{path}: prometheus_config: path: expected a /, got {prometheus.path!r}")
    return prometheus.path or monitoring.DEFAULT_PATH
