"""Where a server learns which models, versions and labels to serve, and follows their changes."""

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import ServingError
from serving.server.manager import Manager
from serving.store import model_config

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Tells a configuration; it may tell another one later."""

    def read(self) -> model_server_config_pb2.ModelServerConfig:
        """Reads it.

        Raises:
            ConfigError: If it cannot be read.
        """


def check_below(config: model_server_config_pb2.ModelServerConfig, folders: Iterable[Path]) -> None:
    """Refuses models that lie elsewhere than what is served.

    Args:
        config: What a client wants to be served.
        folders: Each base path must be one of them or lie below one, links followed.

    Raises:
        ServingError: PERMISSION_DENIED.
    """
    folders = [folder.resolve() for folder in folders]
    for model in config.model_config_list.config:
        path = Path(model.base_path).resolve()
        if not any(path.is_relative_to(folder) for folder in folders):
            raise ServingError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"model {model.name}: base_path {model.base_path}: expected a directory below "
                "those that this server was started with",
            )


class ConfigFile:
    """A models.config, as `--model_config_file` of TensorFlow Serving takes it."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def read(self) -> model_server_config_pb2.ModelServerConfig:
        """See `Source`."""
        return model_config.read(self._path)


class ServingDir:
    """The directory of one model, and what the models.config beside it says of that model.

    That file names the place of the versions in a container; here they lie in the directory.
    Without such a file, or such a model in it, the newest version is served.

    Args:
        path: Holds the model's versions.
        name: The model's name; the directory's by default.
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        self._path = Path(path).absolute()
        self._name = name or self._path.name
        self._config_path = self._path.parent / model_config.FILE_NAME

    def read(self) -> model_server_config_pb2.ModelServerConfig:
        """See `Source`."""
        config = model_server_config_pb2.ModelServerConfig()
        own = config.model_config_list.config.add(name=self._name)
        if self._config_path.exists():
            for entry in model_config.read(self._config_path).model_config_list.config:
                if entry.name == self._name:
                    own.CopyFrom(entry)
        own.base_path = str(self._path)
        own.model_platform = "tensorflow"
        return config


class Follower:
    """Hands a source's changes to a manager, from a thread of its own.

    Args:
        source: Looked at again and again.
        manager: Serves what the source said when it was made.
        seconds: Between two looks.
    """

    def __init__(
        self,
        source: Source,
        manager: Manager,
        applied: model_server_config_pb2.ModelServerConfig,
        seconds: float,
    ) -> None:
        self._source = source
        self._manager = manager
        self._applied = applied
        self._seconds = seconds
        self._complaint = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="model-config", daemon=True)

    def start(self) -> None:
        """Follows from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Follows no more; a configuration that is being applied still is."""
        self._ended.set()

    def _follow(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                config = self._source.read()
                # What a client has set since then lasts no longer than to here.
                if config != self._applied or not self._manager.serves(config):
                    self._manager.reload(config)
                    self._applied = config
                self._complaint = ""
            except (model_config.ConfigError, ServingError, OSError) as error:
                # Once, not at every look.
                if str(error) != self._complaint:
                    _log.error("the configuration stays as it was: %s", error)
                self._complaint = str(error)
