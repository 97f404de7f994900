"""Keeps `models.config`, from which TensorFlow Serving learns which versions and labels to serve.

It lies beside the models' directories; TensorFlow Serving and `serving.server` poll it. Which
version a label pointed to before is kept in a hidden file next to it, for the way back.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.store import publish
from tfds_pap import files
from tfds_pap.errors import PapError

FILE_NAME = "models.config"
_HISTORY = ".models.history.json"
_COMMENT = (
    "# Kept by serving.export and serving.labels; TensorFlow Serving polls it.\n"
    "# Entries of other models are kept; comments are not.\n"
)

#: Where the models' directory is mounted in a container.
SERVER_MODELS_DIR = "/models"


class ConfigError(PapError):
    """A models.config, label or version that cannot be used; the message is one line."""


class ModelConfig:
    """The entry of one model, changed by one process at a time.

    Args:
        serving_dir: Holds the model's versions; its name is the model's name.
        server_models_dir: Where the server finds the parent of `serving_dir`.
    """

    def __init__(self, serving_dir: Path, server_models_dir: str = SERVER_MODELS_DIR) -> None:
        self._serving_dir = serving_dir.absolute()
        self.name = self._serving_dir.name
        self._base_path = f"{server_models_dir.rstrip('/')}/{self.name}"
        self.path = self._serving_dir.parent / FILE_NAME
        self._history_path = self.path.with_name(_HISTORY)

    def labels(self) -> dict[str, int]:
        """Returns the version of each label."""
        return dict(self._entry(self._read()).version_labels)

    def pinned(self) -> list[int]:
        """Returns the versions that are served by number; none where the newest is served."""
        return list(self._entry(self._read()).model_version_policy.specific.versions)

    def publish(self, version: int, label: str | None = None) -> None:
        """Records a new version.

        Args:
            version: Its number.
            label: Points to it from now on; None takes back a roll-back of the model without
                labels, and changes nothing where labels say what is served.
        """
        if label is not None:
            self.assign(label, version)
            return
        with self._changed() as (entry, _):
            if not entry.version_labels:
                entry.ClearField("model_version_policy")

    def assign(self, label: str, version: int) -> int | None:
        """Points a label to a version.

        Args:
            label: For example "stable" or "canary".
            version: One that was published.

        Returns:
            The version that it pointed to before.

        Raises:
            ConfigError: There is no such version, or the label is empty.
        """
        self._check(version)
        if not label:
            raise ConfigError("--label: expected a name such as stable or canary")
        with self._changed() as (entry, history):
            before = entry.version_labels.get(label)
            if before not in (None, version):
                history.setdefault(label, []).append(before)
            entry.version_labels[label] = version
            self._pin(entry, sorted(set(entry.version_labels.values())))
        return before

    def roll_back(self, label: str | None = None) -> tuple[int, int]:
        """Goes back to what was served before.

        Args:
            label: Goes back to the version that it pointed to before; None, of a model without
                labels, to the next lower version.

        Returns:
            The version until now, and the one from now on.

        Raises:
            ConfigError: There is nothing to go back to.
        """
        available = publish.versions(self._serving_dir)
        with self._changed() as (entry, history):
            if label is None:
                if entry.version_labels:
                    names = ", ".join(sorted(entry.version_labels))
                    raise ConfigError(f"--label: expected one of {names}, which say what is served")
                pinned = entry.model_version_policy.specific.versions
                now = max(pinned, default=max(available, default=0))
                lower = [version for version in available if version < now]
                if not lower:
                    raise ConfigError(f"{self._serving_dir}: no version below {now} to go back to")
                self._pin(entry, [lower[-1]])
                return now, lower[-1]
            if label not in entry.version_labels:
                raise ConfigError(f"--label={label}: {self.path} has no such label")
            now, earlier = entry.version_labels[label], history.get(label, [])
            while earlier:
                before = earlier.pop()
                if before in available:
                    entry.version_labels[label] = before
                    self._pin(entry, sorted(set(entry.version_labels.values())))
                    return now, before
            raise ConfigError(f"--label={label}: it pointed to no other version before {now}")

    def _check(self, version: int) -> None:
        available = publish.versions(self._serving_dir)
        if version not in available:
            expected = ", ".join(map(str, available)) or "none, as nothing is published"
            raise ConfigError(f"version {version} of {self.name}: expected one of {expected}")

    def _pin(self, entry: model_server_config_pb2.ModelConfig, versions: list[int]) -> None:
        entry.model_version_policy.specific.versions[:] = versions

    def _entry(
        self, config: model_server_config_pb2.ModelServerConfig
    ) -> model_server_config_pb2.ModelConfig:
        for entry in config.model_config_list.config:
            if entry.name == self.name:
                return entry
        return config.model_config_list.config.add(
            name=self.name, base_path=self._base_path, model_platform="tensorflow"
        )

    def _read(self) -> model_server_config_pb2.ModelServerConfig:
        return (
            read(self.path) if self.path.exists() else model_server_config_pb2.ModelServerConfig()
        )

    @contextlib.contextmanager
    def _changed(self) -> Iterator[tuple[model_server_config_pb2.ModelConfig, dict]]:
        """Yields the entry and the history of its labels; writes both back unless it raises."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(".models.lock")
        lock.touch(0o644)
        with files.locked(lock):
            config = self._read()
            entry = self._entry(config)
            histories = files.read_json(self._history_path) if self._history_path.exists() else {}
            yield entry, histories.setdefault(self.name, {})
            # The history first: a kill in between costs one step of the way back at most.
            files.write_json(self._history_path, histories)
            files.write_atomically(self.path, _COMMENT + text_format.MessageToString(config))
            # A server in a container is another user, whatever the umask here.
            self.path.chmod(0o644)


def read(path: Path) -> model_server_config_pb2.ModelServerConfig:
    """Reads a models.config.

    Raises:
        ConfigError: It is missing, or is none.
    """
    try:
        return text_format.Parse(
            path.read_text("utf-8"), model_server_config_pb2.ModelServerConfig()
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a ModelServerConfig in text form ({error})") from None
