"""What is seen of a functional model without computing: who reads what, and how large it is."""

from collections.abc import Iterator
from typing import Any

import keras


def only_readers(model: keras.Model) -> dict[str, str]:
    """Returns layer -> the layer that reads its output, by name, where it is the only one.

    A layer that is called twice, or whose output is one of the model's, is none of them.

    Args:
        model: A functional model.

    Example:
        >>> images = keras.Input((8, 8, 3), name="image")
        >>> x = keras.layers.Conv2D(2, 3, name="conv")(images)
        >>> x = keras.layers.MaxPooling2D(2, name="pool")(x)
        >>> graph.only_readers(keras.Model(images, x))
        {'image': 'conv', 'conv': 'pool'}
    """
    config = model.get_config()
    readers: dict[str, list[str]] = {}
    called = {}
    for layer in config["layers"]:
        called[layer["name"]] = len(layer["inbound_nodes"])
        for name in _names(layer["inbound_nodes"]):
            readers.setdefault(name, []).append(layer["name"])
    outputs = set(_names(config["output_layers"]))
    return {
        name: behind[0]
        for name, behind in readers.items()
        if len(behind) == 1 and called[name] <= 1 and called[behind[0]] == 1 and name not in outputs
    }


def _names(part: Any) -> Iterator[str]:
    """Yields the layers whose tensors a part of a functional model's configuration names."""
    if isinstance(part, dict):
        history = part.get("keras_history")
        yield from [history[0]] if history else _names(list(part.values()))
    elif isinstance(part, list | tuple):
        if len(part) == 3 and isinstance(part[0], str):
            yield part[0]
        else:
            for one in part:
                yield from _names(one)


def is_large_map(tensor: keras.KerasTensor) -> bool:
    """Whether an operation on a map `[b, h, w, c]` costs more than compiling it by XLA.

    It is compiled for each shape of a batch; below 50 pixels a side that takes longer.

    Args:
        tensor: Of a model.
    """
    return len(tensor.shape) == 4 and min(side or 0 for side in tensor.shape[1:3]) >= 50
