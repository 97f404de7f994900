"""One signature of a loaded graph: what a request may feed and fetch.

What is refused, and the beginning of each message, are TensorFlow Serving's; shapes are checked,
too, because an input of the wrong rank can kill a real server.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server import tensor_protos
from serving.server.errors import invalid

#: The signature of a request that names none.
DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


class _Input(NamedTuple):
    """What a signature says of one input."""

    tensor: tf.Tensor
    dtype: int
    shape: tuple[int, ...] | None  # -1 is any size, None any rank


class Endpoint:
    """One signature.

    Attributes:
        signature: What the SavedModel says.
        inputs: The graph's tensors and what is expected of them, by name, sorted.
        outputs: The graph's tensors by name, sorted.
    """

    def __init__(self, graph: tf.Graph, signature: meta_graph_pb2.SignatureDef) -> None:
        self.signature = signature
        self.inputs: dict[str, _Input] = {}
        for alias, info in sorted(signature.inputs.items()):
            shape = info.tensor_shape
            sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
            self.inputs[alias] = _Input(_graph_tensor(graph, info.name), info.dtype, sizes)
        self.outputs = {
            alias: _graph_tensor(graph, info.name)
            for alias, info in sorted(signature.outputs.items())
        }
        tensors = [*(each.tensor for each in self.inputs.values()), *self.outputs.values()]
        # The initialisation is listed as a signature, too, but cannot be run as one.
        self._can_run = all(tensor is not None for tensor in tensors)
        self._defaults = {
            alias: tf.make_ndarray(proto) for alias, proto in signature.defaults.items()
        }

    def feeds(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays to feed, in the order of their names; defaults fill what was not sent.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs that are missing or unknown.
        """
        arrays = {**self._defaults, **inputs}
        if arrays.keys() != self.inputs.keys():
            reason = "Inputs contains invalid name"
            if self.inputs.keys() - arrays.keys():
                reason = "Signature input alias"
            if len(inputs) > len(self.inputs) or len(arrays) < len(self.inputs):
                reason = "input size does not match signature"
            raise invalid(f"{reason}: expected {_names(self.inputs)}, got {_names(inputs)}")
        return {alias: np.asarray(arrays[alias]) for alias in self.inputs}

    def chosen(self, output_filter: Sequence[str]) -> Sequence[str]:
        """The outputs to answer with.

        Raises:
            ServingError: INVALID_ARGUMENT for outputs that are unknown or named twice.
        """
        for number, alias in enumerate(output_filter):
            if alias not in self.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {_names(self.outputs)}."
                )
            if alias in output_filter[:number]:
                raise invalid(f"duplicate output tensor alias: {alias}")
        return output_filter or list(self.outputs)

    def check_fit(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compares dtypes and shapes with the signature's.

        Args:
            arrays: As `feeds` returns them.

        Raises:
            ServingError: INVALID_ARGUMENT, naming the input.
        """
        if not self._can_run:
            raise invalid("A Tensor of the signature was not found in the Graph")
        for index, (alias, expected) in enumerate(self.inputs.items()):
            array = arrays[alias]
            dtype = _dtype(alias, array)
            if dtype != expected.dtype:
                wanted, sent = map(tensor_protos.dtype_name, (expected.dtype, dtype))
                raise invalid(f"Expects arg[{index}] to be {wanted} but {sent} is provided")
            if expected.shape is not None and not (
                len(array.shape) == len(expected.shape)
                and all(e in (-1, n) for n, e in zip(array.shape, expected.shape, strict=True))
            ):
                raise invalid(
                    f"Input {alias} has the shape {tensor_protos.shape_text(array.shape)}, "
                    f"expected {tensor_protos.shape_text(expected.shape)}"
                )


def _graph_tensor(graph: tf.Graph, name: str) -> Any:
    """The graph's tensor; None where the name is none, as for the initialisation's signature."""
    try:
        return graph.get_tensor_by_name(name)
    except (KeyError, ValueError):
        return None


def _dtype(alias: str, array: np.ndarray) -> int:
    if array.dtype.kind == "O" and not all(isinstance(value, bytes | str) for value in array.flat):
        raise invalid(f"Input {alias} holds objects that are neither bytes nor text")
    if array.dtype.kind in "OSU":
        return types_pb2.DT_STRING
    try:
        return tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    except TypeError:
        raise invalid(f"Input {alias} has the dtype {array.dtype}, which is no tensor's") from None


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
