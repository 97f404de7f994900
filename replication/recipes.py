"""How the papers' two stages are trained, in both protocols. Defects are BUILD_NOTES.md's D1-D8."""

import dataclasses
import functools

from replication import models, training

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
    patience=None,
    augment="none",
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
    patience=None,
    augment="none",
)
#: The clean protocol chooses the epoch on the tune role and turns each image at random: a smear
#: has no "up", and the tune role takes a fifth of the images away.
_CLEAN = {"keep": "best", "patience": 20, "augment": "flips"}

RECIPES = {
    ("paper", 1): _PAPER_STAGE1,
    ("paper", 2): _PAPER_STAGE2,
    ("clean", 1): dataclasses.replace(_PAPER_STAGE1, **_CLEAN),
    ("clean", 2): dataclasses.replace(
        _PAPER_STAGE2, build=functools.partial(models.stage2_cnn, "clean"), **_CLEAN
    ),
}

#: What lets both protocols end within about five minutes on two CPU cores. 190 px is the smallest
#: input on which the six blocks of P2 leave one cell: same parameters, 0.58 times the work.
PHANTOM_PRESET = {1: {"epochs": 40}, 2: {"epochs": 26, "size": 190}}
