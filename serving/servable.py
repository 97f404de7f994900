"""One version of a model in memory: restored, warmed up, and run as TensorFlow Serving runs it.

A graph and a session of its own, as in the real server, so that errors carry DirectSession's own
words, a timeout cancels the work inside the graph, and closing frees the memory.
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

# tf.compat.v1.Session.run spends 0.1 ms on Python of its own; this is the call at its bottom.
from tensorflow.python.client import pywrap_tf_session

from serving import warmup
from serving.batching import Batcher
from serving.batching_config import BatchingParameters
from serving.errors import ServingError

DEFAULT_SIGNATURE = "serving_default"

#: TensorFlow Serving cuts its messages here.
MESSAGE_LIMIT = 1024

#: Milliseconds that a RunOptions timeout may have: more than anybody waits.
_LONGEST_TIMEOUT_MS = 2**31 - 1

#: What the loader raises for a truncated file, a missing tag and absent variables.
_LOADER_ERRORS = (tf.errors.OpError, OSError, RuntimeError, ValueError, KeyError, DecodeError)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Servable:
    """One version of a model in memory; safe to use from many threads.

    Attributes:
        name: The model's name.
        version: The version's number.
        path: The version's directory, .../<name>/<version>.
        meta_graph: What was loaded; its signatures are `meta_graph.signature_def`.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        meta_graph: meta_graph_pb2.MetaGraphDef,
        session: tf.compat.v1.Session,
        batching: BatchingParameters | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.meta_graph = meta_graph
        self._session = session
        self._endpoints = {
            key: _Endpoint(session.graph, signature)
            for key, signature in meta_graph.signature_def.items()
        }
        self._batcher = None if batching is None else Batcher(self._run_session, batching)

    @classmethod
    def load(
        cls,
        name: str,
        version: int,
        path: str | Path,
        *,
        batching: BatchingParameters | None = None,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
    ) -> "Servable":
        """Restores a SavedModel, initialises it and replays its warm-up requests.

        Args:
            name: The model's name.
            version: The version's number.
            path: The version's directory.
            batching: Merges concurrent requests where given.
            intra_op_threads: Threads that one operation uses; 0 lets TensorFlow choose. The first
                session of a process decides, TensorFlow shares its threads.
            inter_op_threads: Operations that run at the same time; likewise.

        Raises:
            ServingError: If the directory holds no complete SavedModel with the tag `serve`, or
                one of its warm-up requests fails.

        Example:
            >>> servable = Servable.load("pap", 1, "models/pap/1")  # doctest: +SKIP
            >>> servable.run("", {"image_bytes": np.array([data], object)})  # doctest: +SKIP
            {'probabilities': array([[0.1, 0.2, 0.3, 0.4]], dtype=float32), ...}
        """
        path = Path(path)
        if not any((path / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt")):
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
                f"{path}",
            )
        session = tf.compat.v1.Session(
            graph=tf.Graph(),
            config=config_pb2.ConfigProto(
                intra_op_parallelism_threads=intra_op_threads,
                inter_op_parallelism_threads=inter_op_threads,
                gpu_options=config_pb2.GPUOptions(allow_growth=True),
            ),
        )
        try:
            with session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
            servable = cls(name, version, path, meta_graph, session, batching)
        except _LOADER_ERRORS as error:
            session.close()
            is_op = isinstance(error, tf.errors.OpError)
            reason = " ".join(str(error.message if is_op else error).split())
            raise ServingError(
                _CODES[error.error_code] if is_op else grpc.StatusCode.DATA_LOSS,
                f"Cannot load the SavedModel at {path}: {reason}"[:MESSAGE_LIMIT],
            ) from error
        try:
            warmup.replay(servable)
        except ServingError:
            servable.close()
            raise
        return servable

    def signature(self, key: str) -> meta_graph_pb2.SignatureDef:
        """The signature of that name; an empty name is `serving_default`.

        Raises:
            ServingError: FAILED_PRECONDITION, if there is none.
        """
        return self._endpoint(key).signature

    def run(
        self,
        key: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        *,
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
            key: The signature's name; empty for `serving_default`.
            inputs: Arrays by the signature's input names; strings are arrays of bytes objects.
            output_filter: The outputs wanted; all where empty.
            timeout: Seconds after which the run is cancelled.

        Returns:
            Arrays by output name; strings are object arrays of bytes.

        Raises:
            ServingError: In TensorFlow Serving's words: FAILED_PRECONDITION for an unknown
                signature, INVALID_ARGUMENT for inputs or outputs that the signature does not have
                or that do not fit it, DEADLINE_EXCEEDED, and whatever the graph itself raises.
        """
        endpoint = self._endpoint(key)
        arrays = endpoint.feeds(inputs)
        outputs = endpoint.fetches(output_filter)
        endpoint.check_fit(arrays)
        if timeout is not None and timeout <= 0:
            raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        key = key or DEFAULT_SIGNATURE
        if self._batcher is not None:
            return self._batcher.run(key, arrays, outputs, timeout)
        return self._run_session(key, arrays, outputs, timeout)

    def close(self) -> None:
        """Frees the session and the graph; waits for nothing, runs in flight are cancelled.

        A graph is full of reference cycles, so this collects garbage. That takes 250 ms in a
        process with TensorFlow's million objects, and 3 ms in a server that called `gc.freeze()`
        after its imports.
        """
        if self._batcher is not None:
            self._batcher.close()
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._endpoints = {}
        gc.collect()

    def _endpoint(self, key: str) -> "_Endpoint":
        if self._session is None:
            raise _closed()
        key = key or DEFAULT_SIGNATURE
        try:
            return self._endpoints[key]
        except KeyError:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.'
            ) from None

    def _run_session(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        timeout: float | None,
    ) -> dict[str, np.ndarray]:
        # Both are read once: `close` may come at any moment.
        session, endpoint = self._session, self._endpoints.get(key)
        if session is None or endpoint is None:
            raise _closed()
        feeds = {endpoint.inputs[name].tensor: array for name, array in arrays.items()}
        fetches = [endpoint.outputs[name] for name in outputs]
        options = None
        if timeout is not None:
            milliseconds = min(max(1, round(timeout * 1000)), _LONGEST_TIMEOUT_MS)
            options = pywrap_tf_session.TF_NewBufferFromString(
                config_pb2.RunOptions(timeout_in_ms=milliseconds).SerializeToString()
            )
        try:
            results = session._call_tf_sessionrun(options, feeds, fetches, [], None)
        except tf.errors.OpError as error:
            raise translated(error) from error
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        return dict(zip(outputs, results, strict=True))


def translated(error: tf.errors.OpError) -> ServingError:
    """TensorFlow's error with its canonical code and its message, cut as the real server does."""
    return ServingError(_CODES[error.error_code], str(error.message)[:MESSAGE_LIMIT])


def _closed() -> ServingError:
    return ServingError(grpc.StatusCode.CANCELLED, "Session has been closed.")


def _invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message[:MESSAGE_LIMIT])


class _Input(NamedTuple):
    """What a signature says of one input."""

    tensor: Any
    feed_name: str
    dtype: int
    shape: tuple[int, ...] | None  # -1 is any size, None any rank


class _Endpoint:
    """One signature: its checks in the real server's order and words, and its graph tensors."""

    def __init__(self, graph: tf.Graph, signature: meta_graph_pb2.SignatureDef) -> None:
        self.signature = signature
        self.inputs = {}
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
        """The arrays to feed, in the order of their names; defaults fill what was not sent."""
        if len(inputs) > len(self.inputs) or (
            len(inputs) < len(self.inputs) and not self._defaults
        ):
            sent, expected = set(inputs), set(self.inputs)
            raise _invalid(
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
                raise _invalid(
                    f"Signature input alias: {alias}(feed name: {spec.feed_name}) not found in "
                    "request and no default value provided. Inputs expected to be in the request "
                    f"{_names(inputs)}, or default input alias set: "
                    f"{','.join(sorted(self._defaults))}"
                )
        if not inputs.keys() <= self.inputs.keys():
            used = ",".join(sorted(inputs.keys() & self.inputs.keys()))
            raise _invalid(
                f"Inputs contains invalid name. Used request inputs: {used}, "
                f"request input: {','.join(sorted(inputs))}"
            )
        return arrays

    def fetches(self, output_filter: Sequence[str]) -> tuple[str, ...]:
        """The outputs wanted, sorted: every other order would cost the session one more plan."""
        if not output_filter:
            return self._all_outputs
        seen = set()
        for alias in output_filter:
            if alias not in self.outputs:
                raise _invalid(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {_names(self.outputs)}."
                )
            if alias in seen:
                raise _invalid(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        return tuple(sorted(seen))

    def check_fit(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuses dtypes and shapes that do not fit; the wrong rank can kill a real server."""
        if self._no_tensor is not None:
            raise _invalid(
                f"Tensor {self._no_tensor}, specified in either feed_devices or fetch_devices was "
                "not found in the Graph"
            )
        for index, alias in enumerate(self._by_feed_name):
            expected, given = self.inputs[alias].dtype, _dtype(alias, arrays[alias])
            if given != expected:
                raise _invalid(
                    f"Expects arg[{index}] to be {_dtype_name(expected)} "
                    f"but {_dtype_name(given)} is provided"
                )
        for alias, spec in self.inputs.items():
            shape = arrays[alias].shape
            if spec.shape is not None and not (
                len(shape) == len(spec.shape)
                and all(e in (-1, n) for n, e in zip(shape, spec.shape, strict=True))
            ):
                raise _invalid(
                    f"Input {alias} has the shape {_shape_text(shape)}, "
                    f"expected {_shape_text(spec.shape)}"
                )


def _graph_tensor(graph: tf.Graph, name: str) -> Any:
    """The graph's tensor; None where the name is none, as for the initialisation's signature."""
    try:
        return graph.get_tensor_by_name(name)._as_tf_output()
    except (KeyError, ValueError):
        return None


def _dtype(alias: str, array: np.ndarray) -> int:
    if array.dtype.kind == "O" and not all(isinstance(value, bytes | str) for value in array.flat):
        raise _invalid(f"Input {alias} holds objects that are neither bytes nor text")
    if array.dtype.kind in "OSU":
        return types_pb2.DT_STRING
    try:
        return tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    except TypeError:
        raise _invalid(f"Input {alias} has the dtype {array.dtype}, which is no tensor's") from None


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _shape_text(shape: Sequence[int]) -> str:
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape) + "]"
