"""The networks of the papers. Every model takes RGB, 0..255, `[batch, height, width, 3]`.

Scaling and, in the paper protocol, the flip to BGR are layers inside the model, so that a saved
model needs no preprocessing beside it.
"""

import keras

#: Input size in pixels of the original stage-2 CNN (P2).
STAGE2_SIZE = 250
_STAGE2_FILTERS = (40, 32, 32, 64, 64, 64)


def stage1_cnn(size: int = 20, *, dropout_after_dense: bool = False) -> keras.Model:
    """Builds the stage-1 CNN (P1): cell or background.

    Both protocols scale RGB to 0..1, as the authors did.

    Args:
        size: Height and width of the input in pixels; 20 in the paper (7,060 parameters), 50 in
            the authors' later variant.
        dropout_after_dense: The later variant's place of the dropout.

    Returns:
        Model from `[b, size, size, 3]`, 0..255, to probabilities `[b, 2]` (background, cell).
    """
    images = keras.Input((size, size, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    x = keras.layers.Conv2D(10, 10, activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    if not dropout_after_dense:
        x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, activation="relu")(x)
    if dropout_after_dense:
        x = keras.layers.Dropout(0.3)(x)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(images, outputs, name="stage1_cnn")


def stage2_cnn(protocol: str, size: int = STAGE2_SIZE) -> keras.Model:
    """Builds the original stage-2 CNN (P2): NILM, LSIL, HSIL or SCC.

    Args:
        protocol: "paper" feeds BGR, unscaled, as the authors did; "clean" feeds RGB in -1..1,
            without which this network can stay at chance for many epochs.
        size: Height and width of the input in pixels; 250 in the paper (131,108 parameters).

    Returns:
        Model from `[b, size, size, 3]`, RGB, 0..255, to probabilities `[b, 4]` in order of
        severity.
    """
    images = keras.Input((size, size, 3), name="image")
    if protocol == "paper":
        x = keras.ops.flip(images, axis=-1)
    else:
        x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(images)
    for filters in _STAGE2_FILTERS:
        x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(128, activation="relu")(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    outputs = keras.layers.Dense(4, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(images, outputs, name="stage2_cnn")
