"""From hyperparameters to a training recipe: a head on stored features, or blocks on images."""

from pathlib import Path

import keras

from finetune import blocks
from finetune.tuning import Tuning
from replication.learning import features, models, training
from replication.runs import results


def recipe(
    tuning: Tuning,
    spec: features.FeatureSpec,
    *,
    classes: int,
    seed: int,
    keep: str,
    monitor: str,
    name: str,
    published: str = "",
    epochs: int | None = None,
    head: Path | None = None,
) -> training.Recipe:
    """Returns how one model is trained.

    Args:
        tuning: Hyperparameters.
        spec: The backbone's features.
        classes: Number of classes.
        seed: Of the head's weights and dropout.
        keep: See `training.Recipe`, as for `monitor`, `name` and `published`.
        monitor: What makes an epoch better.
        name: What a report calls it.
        published: Key of the figure it is set beside.
        epochs: Fewer than `tuning.epochs`, after which the learning rate is still what it would
            be within these.
        head: A trained head to begin with, where blocks are trained.
    """
    on_images = tuning.unfrozen_blocks > 0
    augment = "none" if tuning.views == 1 else "flips" if on_images else "stored_views"

    def new_head(width: int) -> keras.Model:
        if head is not None:
            return results.load_keras(head)
        return models.head(
            width, classes, units=tuning.hidden_units, dropout=tuning.dropout, seed=seed
        )

    def with_blocks(size: int) -> keras.Model:
        del size
        extractor = spec.extractor()
        model = models.classifier(extractor, new_head(extractor.output_shape[-1]))
        blocks.unfreeze(model, tuning.unfrozen_blocks)
        return model

    return training.Recipe.of(
        tuning,
        name=name,
        stage=2,
        build=with_blocks if on_images else new_head,
        size=spec.size,
        resize=spec.resize,
        epochs=epochs or tuning.epochs,
        keep=keep,
        augment=augment,
        monitor=monitor,
        published=published,
        features=None if on_images else spec,
        schedule_epochs=tuning.epochs,
    )
