"""Networks that build, trace and train in milliseconds: two convolutions, BatchNorm.

MobileNetV2, the smallest of the package's table, takes seconds of each command for that, and so do
the 250 px of the second stage.
"""

import dataclasses
import functools

NAME = "tiny"

#: Input of the second stage in pixels, in place of 250.
STAGE2_SIZE = 32


def constructor():
    """Returns what stands in for a constructor of keras.applications."""
    import keras

    def tiny_net(weights, include_top, input_shape):
        assert not include_top and weights is None
        images = keras.Input(input_shape)
        x = keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="stem")(images)
        x = keras.layers.BatchNormalization(name="stem_normalization")(x)
        x = keras.layers.Conv2D(8, 3, activation="relu", name="top")(x)
        return keras.Model(images, x, name="tiny_net")

    return tiny_net


def entry():
    """Returns its entry in the table of backbones."""
    from replication.learning import models

    return models.Backbone("TinyNet", 32, "torch", 652, "tiny_net_notop.h5")


def stage2(protocol, size=STAGE2_SIZE, *, classes=4):
    """Returns what stands in for `models.stage2_cnn`; pixels are fed to it as the protocol does."""
    import keras

    images = keras.Input((size, size, 3), name="image")
    x = images
    if protocol == "clean":
        x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu", name="conv")(x)
    x = keras.layers.MaxPooling2D(4, name="pool")(x)
    x = keras.layers.Flatten(name="flat")(x)
    outputs = keras.layers.Dense(
        classes, activation="softmax", dtype="float32", name="probabilities"
    )(x)
    return keras.Model(images, outputs, name="tiny_stage2")


def register():
    """Adds the backbone to the table and takes the small second stage, while this process lives."""
    import keras

    from replication.learning import models, recipes

    keras.applications.TinyNet = constructor()
    models.BACKBONES[NAME] = entry()
    models.stage2_cnn = stage2
    for protocol in ("paper", "clean"):
        recipe = recipes.RECIPES[protocol, 2]
        build = functools.partial(stage2, protocol)
        recipes.RECIPES[protocol, 2] = dataclasses.replace(recipe, build=build, size=STAGE2_SIZE)
        recipes.PHANTOM_PRESET[protocol, 2]["size"] = STAGE2_SIZE
