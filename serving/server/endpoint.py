"""One signature of a loaded graph: what a request may feed and fetch.

The checks come in TensorFlow Serving's order and words; shapes are checked, too, because an input
of the wrong rank can kill a real server.
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

    tensor: Any
    feed_name: str
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
        for alias in sorted(signature.inputs):
            info = signature.inputs[alias]
            shape = info.tensor_shape
            self.inputs[alias] = _Input(
                _graph_tensor(graph, info.name),
                info.name,
                info.dtype,
                None if shape.unknown_rank else tuple(dim.size for dim in shape.dim),
            )
        self.outputs = {
            alias: _graph_tensor(graph, signature.outputs[alias].name)
            for alias in sorted(signature.outputs)
        }
        self._all_outputs = tuple(self.outputs)
        self._defaults = {
            alias: tf.make_ndarray(proto) for alias, proto in signature.defaults.items()
        }
        # The initialisation is listed as a signature, too, but cannot be run as one.
        self._no_tensor = next(
            (
                info.name
                for info in (*signature.inputs.values(), *signature.outputs.values())
                if _graph_tensor(graph, info.name) is None
            ),
            None,
        )
        # The session counts its arguments in the order of the graph's names.
        self._by_feed_name = sorted(self.inputs, key=lambda alias: self.inputs[alias].feed_name)

    def feeds(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays to feed, in the order of their names; defaults fill what was not sent.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs that are missing or unknown.
        """
        if len(inputs) > len(self.inputs) or (
            len(inputs) < len(self.inputs) and not self._defaults
        ):
            sent, expected = set(inputs), set(self.inputs)
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(expected)} "
                f"len({_names(sent)}) != len({_names(expected)}). "
                f"Sent extra: {_names(sent - expected)}. "
                f"Missing but required: {_names(expected - sent)}."
            )
        arrays = {}
        for alias, spec in self.inputs.items():
            if alias in inputs:
                arrays[alias] = np.asarray(inputs[alias])
            elif alias in self._defaults:
                arrays[alias] = self._defaults[alias]
            else:
                raise invalid(
                    f"Signature input alias: {alias}(feed name: {spec.feed_name}) not found in "
                    "request and no default value provided. Inputs expected to be in the request "
                    f"{_names(inputs)}, or default input alias set: "
                    f"{','.join(sorted(self._defaults))}"
                )
        if not inputs.keys() <= self.inputs.keys():
            used = ",".join(sorted(inputs.keys() & self.inputs.keys()))
            raise invalid(
                f"Inputs contains invalid name. Used request inputs: {used}, "
                f"request input: {','.join(sorted(inputs))}"
            )
        return arrays

    def chosen(self, output_filter: Sequence[str]) -> Sequence[str]:
        """The outputs to answer with.

        Raises:
            ServingError: INVALID_ARGUMENT for outputs that are unknown or named twice.
        """
        if not output_filter:
            return self._all_outputs
        seen = set()
        for alias in output_filter:
            if alias not in self.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {_names(self.outputs)}."
                )
            if alias in seen:
                raise invalid(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        return output_filter

    def check_fit(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compares dtypes and shapes with the signature's.

        Raises:
            ServingError: INVALID_ARGUMENT, naming the input.
        """
        if self._no_tensor is not None:
            raise invalid(
                f"Tensor {self._no_tensor}, specified in either feed_devices or fetch_devices was "
                "not found in the Graph"
            )
        for index, alias in enumerate(self._by_feed_name):
            expected, given = self.inputs[alias].dtype, _dtype(alias, arrays[alias])
            if given != expected:
                raise invalid(
                    f"Expects arg[{index}] to be {_dtype_name(expected)} "
                    f"but {_dtype_name(given)} is provided"
                )
        for alias, spec in self.inputs.items():
            shape = arrays[alias].shape
            if spec.shape is not None and not (
                len(shape) == len(spec.shape)
                and all(e in (-1, n) for n, e in zip(shape, spec.shape, strict=True))
            ):
                raise invalid(
                    f"Input {alias} has the shape {tensor_protos.shape_text(shape)}, "
                    f"expected {tensor_protos.shape_text(spec.shape)}"
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


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
