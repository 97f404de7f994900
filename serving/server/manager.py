"""The versions of all models: loads, switches, drains, unloads, and says who serves a request.

One thread looks at the disk and loads. A version takes traffic only once it is loaded and warmed
up; the one before it goes on until its last request has ended. No lock is held while a model loads
or runs.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Set
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.server import config_checks
from serving.server.errors import ServingError, invalid
from serving.store import versions

if TYPE_CHECKING:
    from serving.server.servable import Servable

State = get_model_status_pb2.ModelVersionStatus.State

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Version:
    """One load of one version; a version that is loaded again is another one."""

    name: str
    number: int
    path: Path
    state: int = State.START
    servable: "Servable | None" = None
    users: int = 0
    error: ServingError | None = None
    files: tuple = ()


#: A configuration that waits for the loading thread, and how it ends.
_Reload = tuple[model_server_config_pb2.ModelServerConfig, futures.Future[None]]


class Manager:
    """The versions of all models.

    Args:
        config: The models: name, base_path, model_version_policy, version_labels.
        load: Loads a version, given name, number and directory; raises `ServingError`.
        poll_seconds: Seconds between two looks at the disk; 0 for no further look.
        allow_version_labels_for_unavailable_models: Lets a new label name a version that is not
            available yet. A label that is in use moves to available versions only.
        on_change: Called, without arguments, after every change of a version's state, from
            whichever thread made it. It must not call `reload` or `stop`.

    Raises:
        ServingError: If the configuration is not valid.

    Example:
        >>> manager = Manager(config, load=Servable.load)  # doctest: +SKIP
        >>> manager.start()  # doctest: +SKIP
        >>> with manager.use(model_pb2.ModelSpec(name="pap")) as servable:  # doctest: +SKIP
        ...     servable.run("", {"image_bytes": images})
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        *,
        load: Callable[[str, int, Path], "Servable"],
        poll_seconds: float = 1.0,
        allow_version_labels_for_unavailable_models: bool = True,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.on_change = on_change
        self._load = load
        self._poll_seconds = poll_seconds
        self._allow_early_labels = allow_version_labels_for_unavailable_models
        #: Guards everything below; notified when a version's last user leaves.
        self._lock = threading.Condition()
        self._versions: dict[str, dict[int, _Version]] = {}
        self._highest: dict[str, _Version] = {}
        self._config: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._config = self._checked(config)
        self._stop_at: float | None = None
        self._reloads: queue.SimpleQueue[_Reload | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._drains: list[threading.Thread] = []
        self._complaints: dict[str, str] = {}

    def start(self) -> None:
        """Loads what the configuration wants, then goes on looking from a thread of its own."""
        self._scan()
        self._thread = threading.Thread(target=self._poll, name="model-versions", daemon=True)
        self._thread.start()

    def stop(self, drain_seconds: float = 30.0) -> None:
        """Unloads everything.

        Args:
            drain_seconds: How long requests in flight may go on; then they are cancelled.
        """
        with self._lock:
            self._stop_at = time.monotonic() + drain_seconds
            self._lock.notify_all()
        if self._thread is not None:
            self._reloads.put(None)
            self._thread.join(drain_seconds)
        for name in list(self._versions):
            self._unload(name, {v.number for v in self._of(name) if v.state == State.AVAILABLE})
        for thread in self._drains:
            thread.join()

    @contextlib.contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator["Servable"]:
        """Holds a version in memory for a `with` block.

        Args:
            spec: The model's name, and a version's number or label; the highest available version
                where it names none.

        Yields:
            The version.

        Raises:
            ServingError: On entering: INVALID_ARGUMENT without a name or for an unknown label,
                NOT_FOUND if the model or version is not available.
        """
        with self._lock:
            version = self._find(spec)
            servable = version.servable
            assert servable is not None, "an available version is loaded"
            version.users += 1
        try:
            yield servable
        finally:
            with self._lock:
                version.users -= 1
                if not version.users:
                    self._lock.notify_all()

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of a model's versions, newest first; of one version if the spec has a number.

        Unloaded versions stay listed as END, those that failed to load with their error.

        Raises:
            ServingError: NOT_FOUND.
        """
        listed = sorted(self._of(spec.name), key=lambda v: v.number, reverse=True)
        if spec.WhichOneof("version_choice") == "version":
            number = spec.version.value
            listed = [v for v in listed if v.number == number]
            if not listed:
                raise _not_found(f"Could not find version {number} of model {spec.name}")
        if not listed:
            raise _not_found(f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in listed:
            entry = response.model_version_status.add(version=version.number, state=version.state)
            # Set, so that an OK status is sent and not an absent one.
            entry.status.SetInParent()
            if version.error is not None:
                entry.status.error_code = version.error.code.value[0]
                entry.status.error_message = version.error.message
        return response

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Serves another configuration: all of it, or none of it and everything stays as it was.

        Returns once the models that are new are available. Models that are no longer there are
        drained and unloaded.

        Raises:
            ServingError: If the configuration is not valid, a label in use would move to a version
                that is not available, or a new model does not become available.
        """
        if self._thread is None:
            self._config = self._checked(config)
            return
        done: futures.Future[None] = futures.Future()
        self._reloads.put((config, done))
        while not futures.wait([done], timeout=0.1).done:
            if not self._thread.is_alive():
                raise ServingError(grpc.StatusCode.UNAVAILABLE, "The server is shutting down")
        done.result()

    def serves(self, config: model_server_config_pb2.ModelServerConfig) -> bool:
        """Whether this is the configuration that is served now.

        Raises:
            ServingError: If it is not valid.
        """
        return self._config == config_checks.models(config)

    def available(self) -> bool:
        """Whether every configured model has a version that answers."""
        return all(name in self._highest for name in self.model_names())

    def model_names(self) -> list[str]:
        """The configured models."""
        return list(self._config)

    # -- The loading thread --------------------------------------------------------------------

    def _poll(self) -> None:
        while self._stop_at is None:
            try:
                reload = self._reloads.get(timeout=self._poll_seconds or None)
            except queue.Empty:
                self._scan()
                continue
            if reload is None:
                return
            config, done = reload
            try:
                self._apply(config)
            except Exception as error:
                # Whoever asked for it raises it; the thread goes on.
                done.set_exception(error)
            else:
                done.set_result(None)

    def _scan(self) -> None:
        """Brings every model to what its configuration wants."""
        for name, config in self._config.items():
            try:
                self._update(name, config)
                self._complaints.pop(name, None)
            except OSError as error:
                # Once, not at every look.
                if self._complaints.get(name) != str(error):
                    _log.error("model %s: %s", name, error)
                self._complaints[name] = str(error)
        for name in set(self._versions) - set(self._config):
            self._unload(name, {v.number for v in self._of(name)})

    def _apply(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Loads what is new; takes the configuration over if all models and labels can be had."""
        models = config_checks.models(config)
        added = [name for name in models if name not in self._config]
        try:
            failed = [failure for name in added if (failure := self._add(name, models[name]))]
            if failed:
                raise ServingError(
                    grpc.StatusCode.UNKNOWN,
                    f"Some models did not become available: {{{', '.join(failed)}}}",
                )
            for name in models.keys() - set(added):
                # A label in use only moves to a version that answers: this may be its first load.
                with contextlib.suppress(OSError):
                    self._load_wanted(name, models[name])
            self._check_labels(models)
        except ServingError:
            for name in added:
                self._unload(name, {v.number for v in self._of(name)})
                with self._lock:
                    self._versions.pop(name, None)
            # What was loaded on trial goes again.
            self._scan()
            raise
        with self._lock:
            self._config = models
        self._changed()
        self._scan()

    def _add(self, name: str, config: model_server_config_pb2.ModelConfig) -> str:
        """Loads a model that is not in the configuration yet; returns why it is not available."""
        try:
            self._update(name, config)
        except OSError as error:
            return f"{name}: {error}"
        if name in self._highest:
            return ""
        errors = [f"version {v.number}: {v.error}" for v in self._of(name) if v.error]
        return f"{name}: {'; '.join(errors) or 'no version found'}"

    def _update(self, name: str, config: model_server_config_pb2.ModelConfig) -> None:
        """Loads what is wanted, then unloads what is not.

        Raises:
            OSError: If the base path cannot be listed; then nothing changes.
        """
        self._unload(name, self._load_wanted(name, config))

    def _load_wanted(self, name: str, config: model_server_config_pb2.ModelConfig) -> Set[int]:
        """Loads what is wanted; returns the versions that are not.

        Raises:
            OSError: If the base path cannot be listed.
        """
        policy = config.model_version_policy
        on_disk = versions.on_disk(config.base_path)
        broken = {
            v.number
            for v in self._of(name)
            if v.error is not None
            and v.path == on_disk.get(v.number)
            and v.files == versions.files(v.path)
        }
        while True:
            wanted = versions.wanted(policy, on_disk.keys(), broken)
            serving = {v.number: v for v in self._of(name) if v.state == State.AVAILABLE}
            missing = [n for n in wanted if n not in serving or serving[n].path != on_disk[n]]
            if not missing:
                break
            if self._stop_at is not None:
                return set()
            number = max(missing)
            if not self._load_version(_Version(name, number, on_disk[number])):
                broken.add(number)
        return versions.unwanted(policy, on_disk.keys(), wanted, serving.keys())

    def _load_version(self, version: _Version) -> bool:
        """Loads a version; it takes the traffic of its number, or of the model, in one step."""
        before = self._versions.get(version.name, {}).get(version.number)
        replaced = before if before is not None and before.state == State.AVAILABLE else None
        if replaced is None:
            self._move(version, State.START)
            self._move(version, State.LOADING)
        # Before loading: what is written meanwhile is a reason to try again.
        version.files = versions.files(version.path)
        try:
            version.servable = self._load(version.name, version.number, version.path)
        except ServingError as error:
            version.error = error
        except Exception as error:
            _log.exception("model %s version %s", version.name, version.number)
            version.error = ServingError(
                grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
            )
        if version.error is None:
            self._move(version, State.AVAILABLE)
            if replaced is not None:
                self._drain_later(replaced)
            if self._stop_at is not None:
                # `stop` did not wait for this load.
                self._drain_later(version)
            return True
        _log.error(
            "model %s version %s cannot be served: %s",
            *(version.name, version.number, version.error.message),
        )
        if replaced is None:
            self._move(version, State.END)
        return False

    def _unload(self, name: str, numbers: Set[int]) -> None:
        for version in self._of(name):
            if version.number in numbers and version.state == State.AVAILABLE:
                self._drain_later(version)

    def _drain_later(self, version: _Version) -> None:
        self._move(version, State.UNLOADING)
        thread = threading.Thread(
            target=self._drain, args=(version,), name="model-drain", daemon=True
        )
        self._drains = [t for t in self._drains if t.is_alive()] + [thread]
        thread.start()

    def _drain(self, version: _Version) -> None:
        """Waits for the last user of a version, then frees it."""
        with self._lock:
            while version.users:
                left = None if self._stop_at is None else self._stop_at - time.monotonic()
                if left is not None and left <= 0:
                    _log.warning(
                        "model %s version %s: %s requests are cancelled",
                        *(version.name, version.number, version.users),
                    )
                    break
                self._lock.wait(left)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        self._move(version, State.END)

    def _move(self, version: _Version, state: int) -> None:
        """Gives a version another state; requests that come later see all of it or nothing."""
        with self._lock:
            version.state = state
            listed = self._versions.setdefault(version.name, {})
            # Another one may be listed by now: the version that replaced it under its number.
            if state in (State.START, State.AVAILABLE):
                listed[version.number] = version
            serving = [v for v in listed.values() if v.state == State.AVAILABLE]
            if serving:
                self._highest[version.name] = max(serving, key=lambda v: v.number)
            else:
                self._highest.pop(version.name, None)
        self._changed()

    def _changed(self) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change()
        except Exception:
            # A broken listener must not end the thread that loads versions.
            _log.exception("on_change failed")

    # -- Look-ups ------------------------------------------------------------------------------

    def _of(self, name: str) -> list[_Version]:
        with self._lock:
            return list(self._versions.get(name, {}).values())

    def _find(self, spec: model_pb2.ModelSpec) -> _Version:
        """The version that answers a request; call it with the lock held."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        config = self._config.get(spec.name)
        if choice is None:
            # A model that `reload` is still loading does not answer yet.
            version = self._highest.get(spec.name) if config is not None else None
            if version is None:
                raise _not_found(f"Servable not found for request: Latest({spec.name})")
            return version
        if choice == "version":
            number = spec.version.value
        elif config is not None and spec.version_label in config.version_labels:
            number = config.version_labels[spec.version_label]
        else:
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = self._versions.get(spec.name, {}).get(number) if config is not None else None
        if version is None or version.state != State.AVAILABLE:
            raise _not_found(f"Servable not found for request: Specific({spec.name}, {number})")
        return version

    def _checked(
        self, config: model_server_config_pb2.ModelServerConfig
    ) -> dict[str, model_server_config_pb2.ModelConfig]:
        """The models by name.

        Raises:
            ServingError: See `config_checks.models` and `_check_labels`.
        """
        models = config_checks.models(config)
        self._check_labels(models)
        return models

    def _check_labels(self, models: dict[str, model_server_config_pb2.ModelConfig]) -> None:
        """Compares labels with what is available.

        Raises:
            ServingError: In the real server's words.
        """
        for name, model in models.items():
            before = self._config[name].version_labels if name in self._config else {}
            available = {v.number for v in self._of(name) if v.state == State.AVAILABLE}
            for label, number in model.version_labels.items():
                moves = label in before and before[label] != number
                if number not in available and (moves or not self._allow_early_labels):
                    raise ServingError(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {name}, which is "
                        "not currently available for inference",
                    )


def _not_found(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.NOT_FOUND, message)
