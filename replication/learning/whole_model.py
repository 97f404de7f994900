"""Joins a backbone and a head that was trained on its stored features, and checks the two."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow_datasets.public_api as tfds

from replication.learning import features, folding, models
from replication.measures import evaluation
from replication.runs.device import DevicePolicy
from tfds_pap import pipeline
from tfds_pap.errors import PapError

#: How far a probability may differ: batches of other sizes are summed in another order, and XLA
#: fuses what it can.
TOLERANCE = 1e-3
#: How far the probabilities of an image may differ in the mean over images where a network computes
#: in half precision: another device, or another form of it (`folding`), rounds elsewhere. A
#: MobileNetV2 in bfloat16 differed by 0.024, and by 0.11 on one of 256 images.
_HALF_TOLERANCE = 0.1

#: Images decoded at a time.
_CHUNK = 256


def join(spec: features.FeatureSpec, head: keras.Model) -> keras.Model:
    """Returns the model from RGB, 0..255, to probabilities.

    Args:
        spec: The features that the head was trained on.
        head: From features to probabilities.
    """
    return models.without_xla(models.classifier(spec.extractor(), head))


def disagreement(
    model: keras.Model,
    probabilities: np.ndarray,
    expected: np.ndarray,
    tolerance: float = TOLERANCE,
) -> tuple[float, float]:
    """Returns how far a model is from what it should say, and how far it may be.

    Args:
        model: Computed `probabilities`, in the precision of its layers.
        probabilities: `[b, classes]`.
        expected: The same of another device or another form of the model.
        tolerance: Of a model that computes in float32.

    Returns:
        The largest difference and `tolerance`, or, of a model that computes in half precision, the
        mean over images of the largest difference and what that may be.
    """
    differences = np.abs(probabilities - expected).max(axis=1)
    weighted = (layer for layer in models.leaf_layers(model) if layer.weights)
    if all(layer.compute_dtype == "float32" for layer in weighted):
        return float(differences.max()), tolerance
    return float(differences.mean()), _HALF_TOLERANCE


def largest_difference(
    model: keras.Model,
    spec: features.FeatureSpec,
    builder: tfds.core.DatasetBuilder,
    predictions: evaluation.Predictions,
    policy: DevicePolicy,
) -> float:
    """Scores images anew, from their files, with the whole model.

    Args:
        model: From `join`; it computes in the form that the features were computed in.
        spec: Says how images are decoded.
        builder: A prepared builder.
        predictions: Of the head on stored features.
        policy: That they were computed under.

    Returns:
        Largest absolute difference of any probability.

    Raises:
        PapError: If it is above `TOLERANCE`.
    """
    worst = 0.0
    network = models.without_xla(folding.folded(model)) if policy.fewer_passes else model
    for first in range(0, len(predictions), _CHUNK):
        ids: Sequence[str] = predictions.ids[first : first + _CHUNK]
        images = np.stack(pipeline.read_images(builder, ids, spec.size, spec.resize))
        whole = np.asarray(network.predict(images, verbose=0))
        expected = predictions.probabilities[first : first + _CHUNK]
        worst = max(worst, float(np.abs(whole - expected).max()))
    if worst > TOLERANCE:
        raise PapError(
            f"{spec.backbone}: the whole model differs from the head on features by {worst:.2g} in "
            f"probability, expected at most {TOLERANCE:g}"
        )
    return worst
