"""What a model would have said of the test folder after every epoch: what the authors looked at."""

from pathlib import Path

import keras
import numpy as np

from replication.learning import training
from replication.measures.predictions import Predictions
from tfds_pap import files, roles
from tfds_pap.errors import PapError

#: Folder of a fit in which the classes named after each epoch lie.
_FOLDER = "epochs"


class TestFolderWatch(keras.callbacks.Callback):
    """Writes the class that the model gives each test image after every epoch but the last.

    Those of the last epoch are the fit's own predictions, as the paper protocol keeps its weights.

    Args:
        directory: Of the fit.
        examples: What it trains on.
        assigned: Which image has which role.
    """

    def __init__(self, directory: Path, examples: training.Store, assigned: roles.Roles) -> None:
        super().__init__()
        self._folder = directory / _FOLDER
        self._examples, self._test = examples, assigned.test

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Looks at the test folder with the weights of the epoch before.

        Looked at here, and not at its end, an epoch after whose end the process was killed is not
        missed: a resumed fit begins with the weights of that moment.
        """
        path = self._folder / f"{epoch:04d}.npy"
        if epoch and not path.exists():
            said = training.predict(self.model, self._examples, self._test)
            with files.replacing(path) as partial, partial.open("wb") as file:
                np.save(file, said.argmax(axis=1).astype(np.int16))


def named_by_epoch(directory: Path, test: Predictions, epochs: int) -> np.ndarray:
    """Returns the classes that a finished fit named after each epoch.

    Args:
        directory: Of the fit.
        test: Its predictions of the test role, in the stored order; the last row.
        epochs: That it ran.

    Returns:
        int64 ``[epochs, n]``.

    Raises:
        PapError: If an epoch is missing, or is of other images.
    """
    rows = []
    for epoch in range(1, epochs):
        path = directory / _FOLDER / f"{epoch:04d}.npy"
        try:
            row = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PapError(
                f"{path}: expected the classes named after epoch {epoch} ({error}); delete "
                f"{directory}, and the same command trains the fit anew"
            ) from error
        if row.shape != (len(test),):
            raise PapError(f"{path}: expected {len(test)} images, got {row.shape}")
        rows.append(row.astype(np.int64))
    return np.stack([*rows, test.predicted])
