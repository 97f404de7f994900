"""A backbone that builds, traces and trains in milliseconds: two convolutions, BatchNorm.

MobileNetV2, the smallest of the package's table, takes seconds of each command for that.
"""

NAME = "tiny"


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


def register():
    """Adds it to the table for as long as this process lives."""
    import keras

    from replication.learning import models

    keras.applications.TinyNet = constructor()
    models.BACKBONES[NAME] = entry()
