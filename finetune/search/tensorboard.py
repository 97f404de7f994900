"""What TensorBoard shows of a search: the HParams table, and the scalars of every trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from finetune.search import scoring
from replication.drawing import tensorboard


def write_columns(logs: Path, hyperparameters: keras_tuner.HyperParameters, objective: str) -> None:
    """Declares the columns of the HParams table, the objective first; once a search.

    Args:
        logs: TensorBoard's log directory.
        hyperparameters: Of the whole space.
        objective: One of `scoring.OBJECTIVES`.
    """
    if any(logs.glob("events.*")):
        return
    names = [objective, *(name for name in scoring.OBJECTIVES if name != objective)]
    # Sensitivity never stands alone, though nothing can be won by specificity alone.
    names.insert(names.index("val_hsil_plus_sensitivity") + 1, "val_hsil_plus_specificity")
    writer = tf.summary.create_file_writer(str(logs))
    with writer.as_default():
        hparams.hparams_config(
            hparams=[
                hparams.HParam(parameter.name, _domain(parameter))
                for parameter in hyperparameters.space
            ],
            metrics=[hparams.Metric(name, display_name=name) for name in names],
        )
    writer.close()


def write_trial(
    logs: Path,
    trial_id: str,
    values: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Writes a finished trial.

    Args:
        logs: TensorBoard's log directory.
        trial_id: Names the session.
        values: Active hyperparameters.
        metrics: Figures of the table.
        history: Figures of every epoch.
    """
    tensorboard.write_session(
        logs / f"trial_{trial_id}", values, metrics, name=f"trial {trial_id}", history=history
    )


def _domain(parameter: Any) -> hparams.Discrete | hparams.RealInterval:
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Float) and parameter.step is None:
        return hparams.RealInterval(parameter.min_value, parameter.max_value)
    return hparams.Discrete(list(parameter.values))
