"""How the papers' two stages are trained, in both protocols. D1-D8: see docs/defects.md."""

import dataclasses
import functools
from typing import Any

import keras

from replication.learning import features, models, training, weights
from replication.measures import published
from tfds_pap import taxonomy

#: Data set of each stage.
DATASETS = {1: "pap_db3", 2: "pap_db4"}

#: P1. Nearest-neighbour resize, RGB/255, 100 epochs, scored with the weights of the last one.
_PAPER_STAGE1 = training.Recipe(
    name="stage-1 CNN (P1)",
    stage=1,
    build=models.stage1_cnn,
    size=20,
    resize="nearest",
    epochs=100,
    batch_size=32,
    learning_rate=1e-3,
    keep="last",
    patience=0,
    augment="none",
    optimizer="adam",
    published="P1.accuracy",
)
#: P1's later variant, of which the published 0.992 is: 50 x 50 px, dropout behind the dense layer,
#: 56 epochs.
_PAPER_STAGE1_50 = dataclasses.replace(
    _PAPER_STAGE1,
    name="stage-1 CNN, 50 x 50 px (P1)",
    build=functools.partial(models.stage1_cnn, dropout_after_dense=True),
    size=50,
    epochs=56,
)
#: P2. BGR, 0..255 unscaled, 100 epochs, scored with the weights of the last one.
_PAPER_STAGE2 = training.Recipe(
    name="stage-2 original CNN (P2)",
    stage=2,
    build=functools.partial(models.stage2_cnn, "paper"),
    size=models.STAGE2_SIZE,
    resize="bilinear",
    epochs=100,
    batch_size=32,
    learning_rate=1e-3,
    keep="last",
    patience=0,
    augment="none",
    optimizer="adam",
    published="P2.accuracy",
)
#: The clean protocol chooses the epoch on the tune role and turns each image at random: a smear
#: has no "up", and the tune role takes a fifth of the images away.
_CLEAN: dict[str, Any] = {"keep": "best", "patience": 20, "augment": "flips"}

RECIPES = {
    ("paper", 1): _PAPER_STAGE1,
    ("paper", 2): _PAPER_STAGE2,
    ("clean", 1): dataclasses.replace(_PAPER_STAGE1, **_CLEAN),
    ("clean", 2): dataclasses.replace(
        _PAPER_STAGE2, build=functools.partial(models.stage2_cnn, "clean"), **_CLEAN
    ),
}

#: Smallest input in pixels on which the six blocks of P2 leave one cell: same parameters, 0.58
#: times the work.
PHANTOM_SIZE = 190
#: What brings each fit above chance. Unscaled pixels (paper) need many steps: of ten seeds on cells
#: a little less alike, in batches of 8, eight named more than 36 % right after 5,600 images (median
#: 62 %); scaled pixels (clean) named 66 % in the median after 2,000.
PHANTOM_PRESET: dict[tuple[str, int], dict[str, int]] = {
    ("paper", 1): {"epochs": 30},
    ("clean", 1): {"epochs": 30},
    ("paper", 2): {"epochs": 9, "batch_size": 8, "size": PHANTOM_SIZE},
    ("clean", 2): {"epochs": 4, "batch_size": 8, "size": PHANTOM_SIZE},
}
#: Minutes that a whole run with the preset takes at most on two cores with AVX2, and those of
#: its part that is no training.
PHANTOM_MINUTES, _PHANTOM_OVERHEAD = 4, 1


def plan(
    protocol: str,
    stage: int,
    *,
    phantoms: bool,
    stage1: str = "20",
    stage2: str = "cnn",
    weights_spec: str = "imagenet",
    epochs: int | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    minutes: int | None = None,
    classes: int | None = None,
    without: str | None = None,
) -> training.Recipe:
    """Returns how one stage is trained, as the flags say.

    Args:
        protocol: "paper" or "clean".
        stage: 1 or 2.
        phantoms: Whether the images are drawn; then fewer epochs do.
        stage1: Input of the first stage in pixels: "20" (P1), or "50" for its later variant.
        stage2: "cnn" (P2) or "resnet50" (P3) for the second stage.
        weights_spec: Of the ResNet50, see `weights.find`.
        epochs: Instead of the recipe's.
        batch_size: Instead of the recipe's.
        augment: "none" or "flips" instead of the clean recipe's.
        minutes: What a run on phantoms is made for, from `PHANTOM_MINUTES`.
        classes: Of the second stage, of a lab's own images, beside whose figures nothing published
            stands; None for the papers' four.
        without: "D1": the second stage's CNN is fed RGB in -1..1 and all else stays as the protocol
            has it. None leaves every defect of the protocol in.
    """
    preset: dict[str, Any] = dict(PHANTOM_PRESET[protocol, stage]) if phantoms else {}
    if preset and minutes:
        longer = (minutes - _PHANTOM_OVERHEAD) / (PHANTOM_MINUTES - _PHANTOM_OVERHEAD)
        preset["epochs"] = round(preset["epochs"] * longer)
    if stage == 2 and stage2 == "resnet50":
        recipe = stage2_resnet50(protocol, weights_spec, classes or len(taxonomy.STAGE2_CLASSES))
        preset = {name: value for name, value in preset.items() if name == "epochs"}
    elif stage == 1 and stage1 == "50":
        recipe = _PAPER_STAGE1_50
        if protocol == "clean":
            recipe = dataclasses.replace(recipe, epochs=_PAPER_STAGE1.epochs, **_CLEAN)
    else:
        recipe = RECIPES[protocol, stage]
        if stage == 2 and (classes is not None or without == "D1"):
            own = {} if classes is None else {"classes": classes}
            fed = "clean" if without == "D1" else protocol
            build = functools.partial(models.stage2_cnn, fed, **own)
            recipe = dataclasses.replace(recipe, build=build)
    if classes is not None:
        # P3's test on a fifth of the train folder is a defect of its own, not of other images.
        recipe = dataclasses.replace(recipe, published=published.NONE, test_within_train=False)
    if augment == "flips" and recipe.features is not None:
        augment = "stored_views"
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "augment": augment if protocol == "clean" else None,
    }
    preset |= {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(recipe, **preset)


#: P3's input in pixels, and its optimizer's learning rate.
_RESNET50_SIZE, _RESNET50_LEARNING_RATE = 224, 1e-2


def stage2_resnet50(protocol: str, spec: str, classes: int) -> training.Recipe:
    """Returns how P3 is trained: a dense layer on a frozen ResNet50.

    The paper protocol feeds each image anew, flipped, blurred and turned, normalised as torchvision
    does, and is scored on a random fifth of the train folder. The clean protocol gives the backbone
    the pixels its weights were trained on, picks one of eight stored views, and is scored on the
    validation folder.

    Args:
        protocol: "paper" or "clean".
        spec: See `weights.find`.
        classes: How many classes; 4 in the paper.

    Raises:
        PapError: If the weights are not there or do not fit.
    """
    pretrained = weights.find("resnet50", spec)
    shared = dataclasses.replace(
        _PAPER_STAGE2,
        name="stage-2 ResNet50 (P3)" + (", untrained" if pretrained.path is None else ""),
        size=_RESNET50_SIZE,
        learning_rate=_RESNET50_LEARNING_RATE,
        published="P3.validation_accuracy",
    )
    if protocol == "paper":
        torch_style = features.FeatureSpec("resnet50", pretrained, _RESNET50_SIZE, "torch")
        return dataclasses.replace(
            shared,
            build=functools.partial(_frozen_classifier, torch_style, classes),
            augment="flips_blur_rotation",
            test_within_train=True,
        )
    own = features.FeatureSpec("resnet50", pretrained, _RESNET50_SIZE, "caffe", views=8)
    return dataclasses.replace(
        shared,
        build=functools.partial(models.linear_head, classes=classes),
        features=own,
        **{**_CLEAN, "augment": "stored_views"},
    )


def _frozen_classifier(spec: features.FeatureSpec, classes: int, size: int) -> keras.Model:
    del size
    extractor = spec.extractor()
    return models.classifier(extractor, models.linear_head(extractor.output_shape[-1], classes))
