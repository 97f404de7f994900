"""Joins a backbone and a head that was trained on its stored features, and checks the two."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow_datasets.public_api as tfds

from replication.learning import features, models
from replication.measures import evaluation
from tfds_pap import pipeline
from tfds_pap.errors import PapError

#: How far a probability may differ: batches of other sizes are summed in another order, and XLA
#: fuses what it can.
TOLERANCE = 1e-3

#: Images decoded at a time.
_CHUNK = 256


def join(spec: features.FeatureSpec, head: keras.Model) -> keras.Model:
    """Returns the model from RGB, 0..255, to probabilities.

    Args:
        spec: The features that the head was trained on.
        head: From features to probabilities.
    """
    return models.without_xla(models.classifier(spec.extractor(), head))


def largest_difference(
    model: keras.Model,
    spec: features.FeatureSpec,
    builder: tfds.core.DatasetBuilder,
    predictions: evaluation.Predictions,
) -> float:
    """Scores images anew, from their files, with the whole model.

    Args:
        model: From `join`.
        spec: Says how images are decoded.
        builder: A prepared builder.
        predictions: Of the head on stored features.

    Returns:
        Largest absolute difference of any probability.

    Raises:
        PapError: If it is above `TOLERANCE`.
    """
    worst = 0.0
    for first in range(0, len(predictions), _CHUNK):
        ids: Sequence[str] = predictions.ids[first : first + _CHUNK]
        images = np.stack(pipeline.read_images(builder, ids, spec.size, spec.resize))
        whole = np.asarray(model.predict(images, verbose=0))
        expected = predictions.probabilities[first : first + _CHUNK]
        worst = max(worst, float(np.abs(whole - expected).max()))
    if worst > TOLERANCE:
        raise PapError(
            f"{spec.backbone}: the whole model differs from the head on features by {worst:.2g} in "
            f"probability, expected at most {TOLERANCE:g}"
        )
    return worst
