"""What TensorBoard shows of a fit beside Keras's own scalars: graph, confusion matrix, mistakes.

And of one fit among many: a session of the HParams plugin.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont
from sklearn import metrics
from tensorboard.plugins.hparams import api as hparams

from replication.drawing import confusion
from replication.learning import training
from tfds_pap import pipeline, roles

#: Epochs between two looks at the images; a look costs one pass over the watched role.
_IMAGES_EVERY = 10
_SHOWN_MISTAKES = 24

#: Pixels: the least width of a mistaken cell, and the height of a line below it.
_CAPTION_WIDTH, _CAPTION_LINE = 200, 18


class Pictures(keras.callbacks.Callback):
    """Writes the graph, and the confusion matrix and misclassified cells as images.

    Args:
        directory: Where the event files are written.
        store: Decoded images.
        positions: Which images are watched; never those of the test role.
    """

    def __init__(self, directory: Path, store: pipeline.ImageStore, positions: np.ndarray) -> None:
        super().__init__()
        self._directory = str(directory)
        self._store = store
        self._positions = positions
        self._seen = self._epoch = -1

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Writes the graph, if TensorFlow computes; with Keras 3 its own callback leaves it out."""
        if keras.backend.backend() != "tensorflow":
            return
        inputs = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
        writer = tf.summary.create_file_writer(self._directory)
        with writer.as_default():
            tf.summary.graph(tf.function(self.model).get_concrete_function(inputs).graph)
        writer.close()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Looks every few epochs."""
        self._epoch = epoch
        if (epoch + 1) % _IMAGES_EVERY == 0:
            self._look(epoch)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Looks at the last epoch, whichever it was."""
        if self._epoch > self._seen:
            self._look(self._epoch)

    def _look(self, epoch: int) -> None:
        self._seen = epoch
        probabilities = training.predict(self.model, self._store, self._positions)
        truth = self._store.index.labels[self._positions]
        named = probabilities.argmax(axis=1)
        mistaken = np.flatnonzero(named != truth)[:_SHOWN_MISTAKES]
        writer = tf.summary.create_file_writer(self._directory)
        with writer.as_default(step=epoch):
            tf.summary.image("confusion matrix (rows true)", self._confusion(truth, named))
            if len(mistaken):
                names = self._store.index.class_names
                cells = self._store.images(self._store.index.ids[self._positions[mistaken]])
                shown = [
                    captioned(cell, names[truth[i]], names[named[i]], probabilities[i, named[i]])
                    for cell, i in zip(cells, mistaken, strict=True)
                ]
                tf.summary.image(
                    "misclassified cells", np.stack(shown), max_outputs=_SHOWN_MISTAKES
                )
        writer.close()

    def _confusion(self, truth: np.ndarray, named: np.ndarray) -> tf.Tensor:
        """The figure of the report, uint8 `[1, h, w, 3]`."""
        names = self._store.index.class_names
        matrix = metrics.confusion_matrix(truth, named, labels=range(len(names)))
        png = confusion.confusion_matrix(matrix, names, form="png")
        return tf.io.decode_png(png, channels=3)[None]


def captioned(image: np.ndarray, true: str, named: str, probability: float) -> np.ndarray:
    """Writes below a cell what it is, and what it was called.

    Args:
        image: uint8 RGB ``[height, width, 3]``; a small one is enlarged, pixel by pixel.
        true: Its class.
        named: The class that it was given.
        probability: Of that class, 0 to 1.

    Returns:
        uint8 RGB ``[height, width, 3]``, at least 200 pixels wide.
    """
    times = max(1, math.ceil(_CAPTION_WIDTH / image.shape[1]))
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    bar = Image.new("RGB", (large.shape[1], 2 * _CAPTION_LINE + 6), "white")
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(size=_CAPTION_LINE - 4)
    share = f" {100 * probability:.0f} %"
    for number, (start, name, end) in enumerate((("is ", true, ""), ("called ", named, share))):
        whole = name
        while len(name) > 1 and draw.textlength(start + name + end, font) > bar.width - 8:
            name = whole[: len(name) - 2] + "…"
        draw.text((4, 2 + number * _CAPTION_LINE), start + name + end, "black", font)
    return np.concatenate([large, np.asarray(bar)])


def callbacks(
    directory: Path,
    store: training.Store,
    assigned: roles.Roles,
    *,
    profile: bool = False,
) -> tuple[keras.callbacks.Callback, ...]:
    """Returns the callbacks that write a fit's event files.

    Args:
        directory: Where the event files are written.
        store: Decoded images; of stored features there is nothing to picture.
        assigned: Roles; the tune role is watched, or the train role where there is no tune role.
        profile: Whether to profile steps 5 to 15.
    """
    watched = assigned.tune if len(assigned.tune) else assigned.train
    scalars = keras.callbacks.TensorBoard(
        str(directory), write_graph=False, profile_batch=(5, 15) if profile else 0
    )
    if not isinstance(store, pipeline.ImageStore):
        return (scalars,)
    return scalars, Pictures(directory / "pictures", store, watched)


def write_session(
    directory: Path,
    values: Mapping[str, str | float | bool],
    scores: Mapping[str, float],
    *,
    name: str,
    history: Sequence[Mapping[str, float]] = (),
    shown: Mapping[str, str] | None = None,
) -> None:
    """Writes one session of the HParams plugin, instead of what the directory held.

    Args:
        directory: Where the event files are written; one session each.
        values: Hyperparameters.
        scores: Figures of the table; those that are not finite are left out.
        name: What the session is called.
        history: Figures of every epoch, shown as scalars `epoch/...`.
        shown: Declares, with these display names, the columns of the table, where no other
            directory does.
    """
    # The same command again would add to the events of the last one.
    shutil.rmtree(directory, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default(step=0):
        if shown is not None:
            hparams.hparams_config(
                hparams=[hparams.HParam(value) for value in values],
                metrics=[hparams.Metric(tag, display_name=text) for tag, text in shown.items()],
            )
        hparams.hparams(dict(values), trial_id=name)
        for tag, score in scores.items():
            if math.isfinite(score):
                tf.summary.scalar(tag, score)
        for epoch, logs in enumerate(history):
            for tag, value in logs.items():
                tf.summary.scalar(f"epoch/{tag}", value, step=epoch)
    writer.close()
