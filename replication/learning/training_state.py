"""All that a fit depends on while it lasts, kept so that a killed one loses nothing."""

import json
import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from replication.learning import models
from tfds_pap import files
from tfds_pap.errors import PapError


class Diverged(PapError):
    """A fit whose loss or weights are no longer finite."""


class TrainingState(keras.callbacks.Callback):
    """Keeps everything that training depends on, so that a killed fit loses nothing.

    Keras's BackupAndRestore stores neither the state of dropout's random generators nor the
    patience and best value of other callbacks, and a kill while it writes leaves half a file.

    Args:
        directory: Where the state lies; removed by the caller once the fit is finished.
        patience: See `Recipe`.
        monitor: See `Recipe`.
        seconds: Least time between two writes; the last epoch is always written.
    """

    def __init__(
        self,
        directory: Path,
        patience: int,
        monitor: str = "val_loss",
        seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._patience = patience
        self._monitor = monitor
        self._seconds = seconds
        self._written_at = time.monotonic()
        self._best: dict[str, np.ndarray] | None = None
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None

    @property
    def _path(self) -> Path:
        return self._directory / "state.npz"

    def _best_path(self) -> Path:
        return self._directory / f"best_{self.best_epoch:04d}.npz"

    def restore(self, model: keras.Model) -> int:
        """Restores a compiled model and its optimizer; returns the epoch to go on with.

        A state that is damaged is announced and removed; training begins anew.
        """
        if not self._path.exists():
            return 0
        model.optimizer.build(model.trainable_variables)
        try:
            # All of it, before anything is assigned.
            stored = _loaded(self._path, _everything(model))
            meta = json.loads(str(stored["meta"]))
            self.history, self.best_epoch = meta["history"], meta["best_epoch"]
            if self.best_epoch is not None:
                self._best = _loaded(self._best_path(), _changing(model))
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"Note: the state in {self._directory} is damaged ({reason}); training anew")
            remove_state(self._directory)
            self.history, self.best_epoch, self._best = [], None, None
            return 0
        _assign(_everything(model), stored)
        return len(self.history)

    def restore_best(self, model: keras.Model) -> None:
        """Sets the weights to those of the best epoch."""
        if self._best is not None:
            _assign(_changing(model), self._best)

    def should_stop(self) -> bool:
        """Tells whether patience has run out."""
        if not self._patience or self.best_epoch is None:
            return False
        return len(self.history) - 1 - self.best_epoch >= self._patience

    def _is_best(self, logs: dict[str, float]) -> bool:
        if self._monitor not in logs:
            return False
        if self.best_epoch is None:
            return True
        gain = logs[self._monitor] - self.history[self.best_epoch][self._monitor]
        return gain < 0 if self._monitor.endswith("loss") else gain > 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Takes the epoch in, and writes the state unless it was written a moment ago."""
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"loss became {logs['loss']} in epoch {epoch + 1}")
        if lost := _not_finite(self.model):
            # A ReLU makes 0 of what is no number: such a network is at chance, and its loss finite.
            raise Diverged(
                f"weights of {', '.join(lost)} are not finite after epoch {epoch + 1}, though the "
                "loss is; what was kept before it stays, and the same command goes on from there"
            )
        self.history.append(logs)
        if self._is_best(logs):
            self.best_epoch = epoch
            self._best = _arrays(_changing(self.model))
        if time.monotonic() - self._written_at >= self._seconds:
            self._write()
        if self.should_stop():
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Writes the state of the last epoch, from which a longer fit may go on."""
        if self._seconds:
            self._write()

    def _write(self) -> None:
        """Writes the state; the best weights come first, so that the state never lacks them."""
        if self._best is not None and not self._best_path().exists():
            _save(self._best_path(), **self._best)
        meta = json.dumps({"history": self.history, "best_epoch": self.best_epoch})
        _save(self._path, **_arrays(_everything(self.model)), meta=meta)
        for path in self._directory.glob("best_*.npz"):
            if path != self._best_path():
                path.unlink()
        self._written_at = time.monotonic()


def remove_state(directory: Path) -> None:
    """Removes the state of a fit whose results are written."""
    for path in directory.glob("*.npz"):
        path.unlink()


def copy_state(source: Path, target: Path) -> None:
    """Lets a fit go on where another one ended; the state comes last, so that it lacks nothing."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        with files.replacing(target / path.name) as partial:
            shutil.copyfile(path, partial)


def _not_finite(model: keras.Model) -> list[str]:
    """Returns the names of trained layers with a weight that is no finite number."""
    lost = {
        weight.path.split("/")[-2]: None
        for weight in model.trainable_variables
        if not np.isfinite(keras.ops.convert_to_numpy(weight)).all()
    }
    return list(lost)


def _changing(model: keras.Model) -> list[keras.Variable]:
    """What training can change: all but the weights of frozen layers, which may be large."""
    frozen = {
        id(weight)
        for layer in models.leaf_layers(model)
        if not layer.trainable
        for weight in layer.weights
    }
    return [variable for variable in model.variables if id(variable) not in frozen]


def _everything(model: keras.Model) -> list[keras.Variable]:
    """Weights, the random generators of dropout, and the optimizer's own variables."""
    return [*_changing(model), *model.optimizer.variables]


def _arrays(variables: list[keras.Variable]) -> dict[str, np.ndarray]:
    return {
        str(number): np.array(keras.ops.convert_to_numpy(variable))
        for number, variable in enumerate(variables)
    }


def _save(path: Path, **arrays: Any) -> None:
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _loaded(path: Path, variables: list[keras.Variable]) -> dict[str, Any]:
    """Reads arrays, whose checksums the zip has; a ValueError where they do not fit."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for number, variable in enumerate(variables):
        if arrays[str(number)].shape != tuple(variable.shape):
            raise ValueError(f"{path.name}: variable {number} has another shape")
    return arrays


def _assign(variables: list[keras.Variable], stored: Any) -> None:
    for number, variable in enumerate(variables):
        variable.assign(stored[str(number)])
