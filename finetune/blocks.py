"""The blocks of a backbone, of which the last ones may be trained."""

import re

import keras

from replication.learning import models
from tfds_pap.errors import PapError

#: How keras.applications names its blocks: conv5_block3 (ResNet, DenseNet), block5 (VGG, Xception),
#: block7a (EfficientNet), block_16 and expanded_conv (MobileNet), stage_3_block_2 (ConvNeXt).
_NAMED = re.compile(
    r"(conv\d+_block\d+|stage_\d+_block_\d+|block_\d+|block\d+[a-z]?|expanded_conv(?:_\d+)?)_"
)


def blocks(network: keras.Model) -> list[list[keras.layers.Layer]]:
    """Returns the layers of a network, block by block.

    What comes before the first named block belongs to it, what follows a block belongs to that
    block. A network without named blocks counts every layer with a kernel as one.

    Args:
        network: From `models.Backbone.build`.

    Example:
        >>> [len(block) for block in blocks(models.backbone("vgg16").build(32))]
        [4, 3, 4, 4, 4]
    """
    layers = list(models.leaf_layers(network))
    matches = [_NAMED.search(layer.name) for layer in layers]
    names = [match and match.group(1) for match in matches]
    if not any(names):
        names = [layer.name if hasattr(layer, "kernel") else None for layer in layers]
    in_blocks: list[list[keras.layers.Layer]] = [[]]
    current = None
    for layer, name in zip(layers, names, strict=True):
        if name is not None and current is not None and name != current:
            in_blocks.append([])
        current = name or current
        in_blocks[-1].append(layer)
    return in_blocks


def unfreeze(model: keras.Model, count: int) -> None:
    """Makes the last blocks of a backbone trainable, their BatchNorm excepted.

    BatchNorm that is not trainable uses its moving statistics, which small batches of other images
    would spoil.

    Args:
        model: Holds one backbone, as `models.feature_extractor` and `models.classifier` do.
        count: Number of blocks from the end.

    Raises:
        PapError: If the backbone has fewer blocks.
    """
    (network,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    all_blocks = blocks(network)
    if count > len(all_blocks):
        raise PapError(
            f"unfrozen_blocks={count}: {network.name} has {len(all_blocks)} blocks, expected at "
            "most that many"
        )
    # A layer is trained only where the model around it is.
    network.trainable = True
    for number, block in enumerate(all_blocks):
        for layer in block:
            layer.trainable = number >= len(all_blocks) - count and not isinstance(
                layer, keras.layers.BatchNormalization
            )
