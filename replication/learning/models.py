"""The networks of the papers. Every model takes RGB, 0..255, `[batch, height, width, 3]`.

Scaling and, in the paper protocol, the flip to BGR are layers inside the model, so that a saved
model needs no preprocessing beside it.
"""

import collections
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfds_pap import files
from tfds_pap.errors import PapError

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
    # Names of our own: Keras would count what this process has built before.
    x = keras.layers.Conv2D(10, 10, activation="relu", name="conv")(x)
    x = keras.layers.MaxPooling2D(2, name="pool")(x)
    if not dropout_after_dense:
        x = keras.layers.Dropout(0.3, name="dropout")(x)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(16, activation="relu", name="dense")(x)
    if dropout_after_dense:
        x = keras.layers.Dropout(0.3, name="dropout")(x)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(images, outputs, name="stage1_cnn")


def stage2_cnn(protocol: str, size: int = STAGE2_SIZE, *, classes: int = 4) -> keras.Model:
    """Builds the original stage-2 CNN (P2): NILM, LSIL, HSIL or SCC.

    Args:
        protocol: "paper" feeds BGR, unscaled, as the authors did; "clean" feeds RGB in -1..1,
            without which this network can stay at chance for many epochs.
        size: Height and width of the input in pixels; 250 in the paper (131,108 parameters).
        classes: How many classes; 4 in the paper.

    Returns:
        Model from `[b, size, size, 3]`, RGB, 0..255, to probabilities `[b, classes]`; those of the
        paper are in order of severity.
    """
    images = keras.Input((size, size, 3), name="image")
    if protocol == "paper":
        x = _to_bgr(images)
    else:
        x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(images)
    for number, filters in enumerate(_STAGE2_FILTERS, start=1):
        x = keras.layers.Conv2D(filters, 3, activation="relu", name=f"conv_{number}")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{number}")(x)
        x = keras.layers.Dropout(0.3, name=f"dropout_{number}")(x)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(128, activation="relu", name="dense_1")(x)
    x = keras.layers.Dense(64, activation="relu", name="dense_2")(x)
    outputs = keras.layers.Dense(
        classes, activation="softmax", dtype="float32", name="probabilities"
    )(x)
    return keras.Model(images, outputs, name="stage2_cnn")


def _to_bgr(images: keras.KerasTensor) -> keras.KerasTensor:
    """Flips RGB to BGR inside a model, under a name that does not count what was built before."""
    flipped = keras.ops.flip(images, axis=-1)
    # The operation takes no name, and a layer of our own would not load without this package.
    flipped._keras_history.operation.name = "rgb_to_bgr"
    return flipped


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One network of keras.applications, without its classifier.

    Attributes:
        constructor: Its name in keras.applications.
        size: Default height and width of the input in pixels.
        preprocessing: What its ImageNet weights were trained on: one of `PREPROCESSING`.
        parameters: Without the classifier.
        weights_file: Published name of its ImageNet weights without the classifier; "" where this
            table does not know it.
        arguments: Further arguments of the constructor.
    """

    constructor: str
    size: int
    preprocessing: str
    parameters: int | None = None
    weights_file: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, size: int, weights: str | None = None) -> keras.Model:
        """Builds it from preprocessed pixels `[b, size, size, 3]` to a map `[b, h, w, d]`."""
        constructor = getattr(keras.applications, self.constructor)
        network = constructor(
            weights=weights, include_top=False, input_shape=(size, size, 3), **self.arguments
        )
        _count_anew(network)
        return network


def _count_anew(network: keras.Model) -> None:
    """Numbers the layers that have no name of their own from this network's first one on.

    Keras counts them over all networks that a process has built, so that a killed and resumed
    command would save other names.
    """
    numbers: collections.Counter[str] = collections.Counter()
    for layer in network.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        # `ZeroPadding2D` is called "zero_padding2d", "zero_padding2d_1" and so on.
        if kind.replace("_", "") == type(layer).__name__.lower():
            layer.name = f"{kind}_{numbers[kind]}" if numbers[kind] else kind
            numbers[kind] += 1


_NOTOP = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
_MOBILENET = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels"

#: Of the papers, and others that cost less. Adding one is one entry here, and nothing else.
BACKBONES: Mapping[str, Backbone] = {
    "resnet50": Backbone("ResNet50", 224, "caffe", 23_587_712, "resnet50" + _NOTOP),
    "resnet152": Backbone("ResNet152", 224, "caffe", 58_370_944, "resnet152" + _NOTOP),
    "vgg16": Backbone("VGG16", 224, "caffe", 14_714_688, "vgg16" + _NOTOP),
    "vgg19": Backbone("VGG19", 224, "caffe", 20_024_384, "vgg19" + _NOTOP),
    "efficientnetb0": Backbone(
        "EfficientNetB0", 224, "included", 4_049_571, "efficientnetb0_notop.h5"
    ),
    "efficientnetb3": Backbone(
        "EfficientNetB3", 300, "included", 10_783_535, "efficientnetb3_notop.h5"
    ),
    "densenet201": Backbone("DenseNet201", 224, "torch", 18_321_984, "densenet201" + _NOTOP),
    "mobilenetv2": Backbone("MobileNetV2", 224, "tf", 2_257_984, f"{_MOBILENET}_1.0_224_no_top.h5"),
    "mobilenetv2_035": Backbone(
        "MobileNetV2", 224, "tf", 410_208, f"{_MOBILENET}_0.35_224_no_top.h5", {"alpha": 0.35}
    ),
    "convnexttiny": Backbone("ConvNeXtTiny", 224, "included", 27_820_128, "convnext_tiny_notop.h5"),
    "efficientnetv2b0": Backbone(
        "EfficientNetV2B0", 224, "included", 5_919_312, "efficientnetv2-b0_notop.h5"
    ),
}

#: Per-channel scale and offset of RGB 0..255, after an optional flip to BGR, as in
#: keras.applications.imagenet_utils. "bgr" is what the notebooks of P2 and P6 fed: no preprocessing
#: at all, on channels in OpenCV's order.
PREPROCESSING: Mapping[str, tuple[bool, Sequence[float], Sequence[float]]] = {
    "included": (False, (1, 1, 1), (0, 0, 0)),
    "bgr": (True, (1, 1, 1), (0, 0, 0)),
    "tf": (False, (1 / 127.5,) * 3, (-1, -1, -1)),
    "caffe": (True, (1, 1, 1), (-103.939, -116.779, -123.68)),
    "torch": (
        False,
        (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
        (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    ),
}


def backbone(name: str) -> Backbone:
    """Returns a backbone by its name in the table, or by any name in keras.applications.

    One that is not in the table gets an input of 224 px and finds its weights by path alone.

    Args:
        name: For example "resnet152" or "Xception"; case does not matter.

    Raises:
        PapError: If there is none; the message offers the nearest names.

    Example:
        >>> backbone("vgg16").size
        224
    """
    if name.lower() in BACKBONES:
        return BACKBONES[name.lower()]
    constructors = {
        other.lower(): other
        for other in dir(keras.applications)
        if other[0].isupper() and callable(getattr(keras.applications, other))
    }
    if name.lower() in constructors:
        return _other_backbone(constructors[name.lower()])
    near = difflib.get_close_matches(name.lower(), {*BACKBONES, *constructors}, n=3)
    offered = f"; did you mean {' or '.join(near)}?" if near else ""
    raise PapError(
        f"backbone {name!r}: expected one of {', '.join(BACKBONES)}, or a name of "
        f"keras.applications{offered}"
    )


def _other_backbone(constructor: str) -> Backbone:
    """Finds out how a network wants its pixels by asking its own `preprocess_input`."""
    # The public modules do not all hold their constructors.
    module = sys.modules[getattr(keras.applications, constructor).__module__]
    probe = np.array([[[[0.0, 0.0, 0.0], [50.0, 100.0, 200.0]]]], np.float32)
    wanted = np.asarray(module.preprocess_input(probe.copy()))[0, 0]
    for mode in ("included", "tf", "caffe", "torch"):
        flip, scale, offset = PREPROCESSING[mode]
        pixels = probe[0, 0, :, ::-1] if flip else probe[0, 0]
        if np.allclose(pixels * scale + offset, wanted, atol=1e-3):
            return Backbone(constructor, 224, mode)
    raise PapError(f"backbone {constructor}: its preprocess_input is none that is known here")


def feature_extractor(network: keras.Model, size: int, preprocessing: str) -> keras.Model:
    """Puts preprocessing before a backbone and global average pooling behind it.

    Args:
        network: From `Backbone.build`; it is frozen, and its BatchNorm stays in inference mode.
        size: Height and width of the input in pixels.
        preprocessing: One of `PREPROCESSING`.

    Returns:
        Model from RGB, 0..255, `[b, size, size, 3]` to float32 features `[b, d]`.
    """
    flip, scale, offset = PREPROCESSING[preprocessing]
    network.trainable = False
    images = keras.Input((size, size, 3), name="image")
    x = _to_bgr(images) if flip else images
    if (scale, offset) != PREPROCESSING["included"][1:]:
        # In bfloat16 the means would be off by a tenth of a grey level.
        x = keras.layers.Rescaling(list(scale), list(offset), dtype="float32", name="scale")(x)
    pooling = keras.layers.GlobalAveragePooling2D(dtype="float32", name="features")
    return keras.Model(images, pooling(network(x)), name=f"{network.name}_features")


def head(
    features: int,
    classes: int,
    *,
    units: Sequence[int] = (64,),
    dropout: float = 0.2,
    seed: int = 0,
) -> keras.Model:
    """Builds the head of P4 and P6: BatchNorm - Dropout - (Dense - Dropout) - Dense.

    It computes in float32 whatever the policy: at its size conversions cost more than they save.

    Args:
        features: Number of pooled features.
        classes: Number of classes.
        units: Of each hidden layer, which has a dropout of its own; one in P6, two in half of P5.
        dropout: Share of values that are dropped.
        seed: Of its weights and dropout, whatever else was built before.

    Returns:
        Model from features `[b, d]` to probabilities `[b, classes]`.
    """
    seeds = iter(range(10 * seed, 10 * seed + 10))

    def dense(count: int, **options: Any) -> keras.layers.Dense:
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        return keras.layers.Dense(count, kernel_initializer=initializer, dtype="float32", **options)

    def dropped(name: str, values: keras.KerasTensor) -> keras.KerasTensor:
        layer = keras.layers.Dropout(dropout, seed=next(seeds), dtype="float32", name=name)
        return layer(values)

    inputs = keras.Input((features,), name="features")
    x = keras.layers.BatchNormalization(dtype="float32", name="head_normalization")(inputs)
    x = dropped("head_dropout", x)
    for number, width in enumerate(units, 1):
        suffix = f"_{number}" if number > 1 else ""
        x = dense(width, activation="relu", name=f"head_dense{suffix}")(x)
        x = dropped(f"head_dropout_{number + 1}", x)
    outputs = dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, outputs, name="head")


def linear_head(features: int, classes: int, *, seed: int = 0) -> keras.Model:
    """Builds the head of P3: one dense layer.

    Args:
        features: Number of pooled features.
        classes: Number of classes.
        seed: Of its weights.

    Returns:
        Model from features `[b, d]` to probabilities `[b, classes]`.
    """
    inputs = keras.Input((features,), name="features")
    initializer = keras.initializers.GlorotUniform(seed=seed)
    probabilities = keras.layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=initializer,
        dtype="float32",
        name="probabilities",
    )
    return keras.Model(inputs, probabilities(inputs), name="head")


def classifier(extractor: keras.Model, trained_head: keras.Model) -> keras.Model:
    """Joins a feature extractor and a head, which it shares, to one model from image to classes.

    Args:
        extractor: From `feature_extractor`.
        trained_head: From `head` or `linear_head`.

    Returns:
        Model from RGB, 0..255, `[b, size, size, 3]` to probabilities `[b, classes]`.
    """
    x = extractor.output
    for layer in trained_head.layers[1:]:
        x = layer(x)
    return keras.Model(extractor.input, x, name=extractor.name.replace("_features", "_classifier"))


def gflops(model: keras.Model) -> float:
    """Counts the floating-point operations of one image, forward, in units of 10^9.

    Multiplication and addition count as one each; convolutions and dense layers alone are counted,
    as is usual, since the rest is a percent or two.

    Args:
        model: From one image tensor; nested models are counted too.
    """
    return sum(_operations(layer) for layer in leaf_layers(model)) / 1e9


def training_gflops(model: keras.Model) -> float:
    """Counts the floating-point operations of one image in a training step; see `gflops`.

    Args:
        model: From one image tensor.
    """
    # Both gradients of a layer cost as much as itself; a frozen one has none.
    counts = ((3 if layer.trainable else 1) * _operations(layer) for layer in leaf_layers(model))
    return sum(counts) / 1e9


def _operations(layer: keras.layers.Layer) -> int:
    if not isinstance(layer, _COUNTED):
        return 0
    places = math.prod(layer.output.shape[1:-1])
    kernels = [weight for weight in layer.weights if "kernel" in weight.name]
    return sum(2 * places * math.prod(kernel.shape) for kernel in kernels)


_COUNTED = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
)


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields every layer, those of nested models in place of these."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def without_xla(model: keras.Model) -> keras.Model:
    """Returns a model that was not compiled, which TensorFlow will not compile with XLA either.

    On a GPU Keras would by itself, at the first prediction: seconds for every shape of a batch.

    Args:
        model: Any; on other backends nothing changes.
    """
    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False
    return model


def save_model(model: Any, path: Path) -> None:
    """Saves a functional Keras model, without optimizer and loss, beside its path; renames it.

    What was only needed for training might not load where this package is not installed.
    """
    # Keras insists on the ending.
    with files.replacing(path, ".keras") as partial:
        keras.Model(model.inputs, model.outputs, name=model.name).save(partial)
