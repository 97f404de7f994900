"""The two trained networks, as a scan uses them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from replication.fields.find.dense import Stage1
from replication.fields.read.field import Field
from replication.measures import decisions
from replication.runs import engines, results
from tfds_pap import decoding, files
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import ROI_SIZE, STAGE1_CLASSES

#: ROIs that stage 2 names at a time. Of 32 the maps of P2's first layer alone take 315 MB a worker;
#: 16 are named 4 % slower.
BATCH = 16


class Stage2:
    """Names the cells in ROIs.

    Args:
        model: From RGB, 0..255, `[b, n, n, 3]` to the probabilities of the classes.
        resize: How its images were resized: one of `decoding.RESIZE_METHODS`.
        decision: Its labels, calibration and threshold.
        roi: Side of the ROI, pixels.

    Attributes:
        decision: Labels, calibration and threshold of abstention.

    Raises:
        PapError: If it knows the classes of stage 1.
    """

    def __init__(
        self,
        model: keras.Model,
        resize: str,
        decision: decisions.Decision,
        *,
        roi: int = ROI_SIZE,
    ) -> None:
        if set(decision.labels) == set(STAGE1_CLASSES):
            raise PapError(
                f"{model.name} names {', '.join(decision.labels)}, expected a network of stage 2"
            )
        self.decision, self._roi = decision, roi
        size = model.inputs[0].shape[1]
        crops = tf.TensorSpec([None, roi, roi, 3], tf.uint8)
        self._resized = tf.function(
            lambda crops: decoding.resize(crops, size, size, resize), input_signature=[crops]
        )
        self._forward = engines.forward(model)

    def probabilities(self, field: Field, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """Names ROIs.

        Args:
            field: The field.
            tops: Upper edge of each ROI, int `[n]`, pixels as read.
            lefts: Left edge of each ROI, int `[n]`, pixels as read.

        Returns:
            The network's own probabilities, float64 `[n, k]`.

        Raises:
            FieldError: If the field is damaged at one of them.
        """
        named = [self._forward(batch) for batch in self.batches(field, tops, lefts)]
        return np.concatenate([np.zeros((0, len(self.decision.labels))), *named])

    def batches(self, field: Field, tops: np.ndarray, lefts: np.ndarray) -> Iterator[np.ndarray]:
        """Reads ROIs and resizes them to what the network takes.

        Args:
            field: The field.
            tops: Upper edge of each ROI, int `[n]`, pixels as read.
            lefts: Left edge of each ROI, int `[n]`, pixels as read.

        Yields:
            Images of `BATCH` ROIs or fewer, uint8 RGB `[b, n, n, 3]`.

        Raises:
            FieldError: If the field is damaged at one of them.
        """
        for first in range(0, len(tops), BATCH):
            part = slice(first, first + BATCH)
            crops = [
                field.read(int(left), int(top), self._roi, self._roi)
                for top, left in zip(tops[part], lefts[part], strict=True)
            ]
            yield self._resized(np.stack(crops)).numpy()


@dataclasses.dataclass(frozen=True)
class Stages:
    """Both networks, and what a scan says of them.

    Attributes:
        stage1: Scores every ROI.
        stage2: Names the kept ROIs.
        about: By "stage1" and "stage2": name, run, protocol, seed, size, resize, SHA-256 of the
            file; of stage 2 also "notes" (what it cannot say) and "scored" (what it scored in its
            own run, in sentences).
    """

    stage1: Stage1
    stage2: Stage2
    about: dict[str, dict[str, Any]]


def load(
    fit1: results.Fit,
    fit2: results.Fit,
    *,
    roi: int = ROI_SIZE,
    stride: int = 25,
    method: str = "exact",
) -> Stages:
    """Loads two finished fits.

    Args:
        fit1: Of stage 1.
        fit2: Of stage 2.
        roi: Side of the ROI, pixels.
        stride: Pixels from one ROI to the next.
        method: One of `dense.METHODS`.

    Raises:
        PapError: If one is not of that stage, or has no form for this method.
    """
    decision, _ = decisions.of_fit(fit2)
    models = [results.load_model(fit) for fit in (fit1, fit2)]
    stage1 = Stage1(models[0], fit1.info["resize"], roi=roi, stride=stride, method=method)
    stage2 = Stage2(models[1], fit2.info["resize"], decision, roi=roi)
    return Stages(stage1, stage2, about(fit1, fit2))


def about(fit1: results.Fit, fit2: results.Fit) -> dict[str, dict[str, Any]]:
    """Returns what a scan says of its networks; see `Stages`.

    Args:
        fit1: Of stage 1.
        fit2: Of stage 2.
    """
    _, missing = decisions.of_fit(fit2)
    told = {"notes": missing, "scored": decisions.scored(fit2)}
    return {"stage1": _about(fit1), "stage2": {**_about(fit2), **told}}


def _about(fit: results.Fit) -> dict[str, Any]:
    keys = ("name", "protocol", "seed", "size", "resize", "parameters")
    return {**{key: fit.info[key] for key in keys}, "sha256": files.sha256(fit.model_path)}
