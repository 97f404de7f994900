"""TensorFlow Serving's monitoring.config: where the Prometheus metrics are, if anywhere.

Its fields are those of tensorflow_serving/config/monitoring_config.proto.
"""

from pathlib import Path

from serving import messages
from serving.server import monitoring, text_messages
from serving.server.errors import invalid

#: The official message, for whoever writes such a file.
MonitoringConfig = messages.classes(
    "PrometheusConfig: bool enable 1, string path 2\n"
    "MonitoringConfig: PrometheusConfig prometheus_config 1"
)["MonitoringConfig"]


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
    prometheus = text_messages.read(Path(path), MonitoringConfig()).prometheus_config
    if not prometheus.enable:
        return None
    if prometheus.path and not prometheus.path.startswith("/"):
        raise invalid(f"{path}: prometheus_config: path: expected a /, got {prometheus.path!r}")
    return prometheus.path or monitoring.DEFAULT_PATH
