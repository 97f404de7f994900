"""The trained models of a run at work: what they say of images, given as arrays or as files."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from replication.measures import decisions
from replication.naming import reading
from replication.naming.prediction import Prediction
from replication.runs import engines, results
from replication.runs.directory import RunDirectory
from tfds_pap import decoding
from tfds_pap.errors import PapError

#: uint8 RGB `[height, width, 3]` of any size, the bytes of an image file, or its path.
Image = np.ndarray | bytes | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A finished fit, loaded.

    Attributes:
        fit: Where it comes from.
        network: From RGB, 0..255, `[b, size, size, 3]` to probabilities `[b, classes]`.
        decision: Its labels, calibration and the threshold below which it abstains.
    """

    fit: results.Fit
    network: keras.Model
    decision: decisions.Decision

    @functools.cached_property
    def forward(self) -> engines.Forward:
        """The network's forward pass."""
        return engines.forward(self.network)


def load_models(
    run_dir: str | os.PathLike, protocol: str = "clean", seed: int | None = None
) -> dict[int, TrainedModel]:
    """Loads the finished models of a run; nothing in their files is run as code.

    Args:
        run_dir: Directory of `replication.run` or `finetune.train`.
        protocol: "paper" or "clean".
        seed: None takes the run's first.

    Returns:
        By stage: 1 finds cells, 2 names them.

    Raises:
        PapError: If this is no run, or there is no such model in it.

    Example:
        >>> models = replication.load_models("runs/phantom")
        >>> models[2].decision.labels
        ('NILM', 'LSIL', 'HSIL', 'SCC')
    """
    fits = results.choose_fits(RunDirectory(Path(run_dir)), protocol, seed)
    return {
        stage: TrainedModel(fit, results.load_model(fit), decisions.of_fit(fit)[0])
        for stage, fit in sorted(fits.items())
    }


def predict_images(
    model: TrainedModel, images: Sequence[Image], *, batch_size: int = 64
) -> list[Prediction | str]:
    """Says what a model sees on images, each resized as its training images were.

    Args:
        model: From `load_models`.
        images: Arrays, contents of files, or paths.
        batch_size: Images a forward pass.

    Returns:
        A prediction an image, in the same order; for one that cannot be read the reason instead.

    Example:
        >>> model = replication.load_models("runs/phantom")[2]
        >>> white = np.full((150, 150, 3), 255, np.uint8)
        >>> predictions = replication.predict_images(model, [white, "nowhere.jpg"])
        >>> round(sum(predictions[0].probabilities), 3), predictions[1]
        (1.0, 'not a file')
    """
    answers: list[Prediction | str] = []
    for first in range(0, len(images), batch_size):
        pixels, reasons = [], {}
        batch = images[first : first + batch_size]
        for number, image in enumerate(batch):
            try:
                pixels.append(_resized(image, model.fit.info["size"], model.fit.info["resize"]))
            except PapError as error:
                reasons[number] = str(error)
        named = iter(_named(model, tf.stack(pixels)) if pixels else [])
        answers += [reasons.get(number) or next(named) for number in range(len(batch))]
    return answers


def _resized(image: Image, size: int, resize: str) -> tf.Tensor:
    """Pixels of one image, uint8 `[size, size, 3]`.

    Raises:
        PapError: With the reason, if it cannot be read.
    """
    if isinstance(image, np.ndarray):
        return decoding.resize(tf.convert_to_tensor(image, tf.uint8), size, size, resize)
    data = reading.decodable(image) if isinstance(image, bytes) else reading.read(image)
    with reading.reasoned():
        return decoding.decode_and_resize(data, size, resize)


def _named(model: TrainedModel, pixels: tf.Tensor) -> list[Prediction]:
    probabilities = model.forward(np.asarray(pixels)).astype(np.float64)
    decision, names = model.decision, model.fit.info["class_names"]
    hsil_plus = [None] * len(probabilities)
    if decision.classes.severe:
        hsil_plus = decision.hsil_plus(probabilities).tolist()
    abstain = [None] * len(probabilities)
    if decision.threshold is not None:
        abstain = decision.abstains(probabilities).tolist()
    return [
        Prediction(
            tuple(row.tolist()),
            names[int(row.argmax())],
            int(row.argmax()),
            positive,
            abstains,
            names=tuple(names),
        )
        for row, positive, abstains in zip(probabilities, hsil_plus, abstain, strict=True)
    ]
