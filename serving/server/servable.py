"""One version of a model in memory: restored, warmed up, and run as TensorFlow Serving runs it.

A graph and a session of its own, as in the real server, so that errors carry DirectSession's own
words, a timeout cancels the work inside the graph, and closing frees the memory.
"""

import gc
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from serving.model import png_streams
from serving.server import allocator
from serving.server.batching import Batcher
from serving.server.batching_config import BatchingParameters
from serving.server.deadlines import DeadlinePool
from serving.server.endpoint import DEFAULT_SIGNATURE, Endpoint
from serving.server.errors import MESSAGE_LIMIT, ServingError, invalid

#: Milliseconds that a RunOptions timeout may have: more than anybody waits.
_LONGEST_TIMEOUT_MS = 2**31 - 1

#: What the loader raises for a truncated file, a missing tag and absent variables.
_LOADER_ERRORS = (tf.errors.OpError, OSError, RuntimeError, ValueError, KeyError, DecodeError)

#: What TensorFlow puts around a text, and behind it.
_ASSERTION = re.compile(r"assertion failed: \[(.*)\]", re.DOTALL)
_GRAPH_NODE = "\n\t [[{{"

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
        images: DeadlinePool | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.meta_graph = meta_graph
        self._session = session
        self._images = images
        self._endpoints = {
            key: Endpoint(session.graph, signature)
            for key, signature in meta_graph.signature_def.items()
        }
        self._batcher = None if batching is None else Batcher(self._run_in_time, batching)

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
        images: DeadlinePool | None = None,
    ) -> "Servable":
        """Restores a SavedModel and initialises it; `warmup.load` warms it up as well.

        Args:
            name: The model's name.
            version: The version's number.
            path: The version's directory.
            batching: Merges concurrent requests where given.
            intra_op_threads: Threads that one operation uses; 0 lets TensorFlow choose. The first
                session of a process decides, TensorFlow shares its threads.
            inter_op_threads: Operations that run at the same time; likewise.
            images: Runs that hold strings, as images are, go through it; None: through none, and
                one that cannot be cancelled outlasts its timeout.

        Raises:
            ServingError: If the directory holds no complete SavedModel with the tag `serve`.

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
            servable = cls(name, version, path, meta_graph, session, batching, images)
        except _LOADER_ERRORS as error:
            session.close()
            code, reason = grpc.StatusCode.DATA_LOSS, str(error)
            if isinstance(error, tf.errors.OpError):
                code, reason = _CODES[error.error_code], error.message
            message = f"Cannot load the SavedModel at {path}: {' '.join(reason.split())}"
            raise ServingError(code, message[:MESSAGE_LIMIT]) from error
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
        chosen = endpoint.chosen(output_filter)
        endpoint.check_fit(arrays)
        if timeout is not None and timeout <= 0:
            raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        run = self._run_in_time if self._batcher is None else self._batcher.run
        # All outputs, always: the session would plan the graph anew for every choice of them,
        # which takes seconds and memory that a hostile client could ask for again and again.
        outputs = run(key or DEFAULT_SIGNATURE, arrays, timeout)
        return {name: outputs[name] for name in chosen}

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
        allocator.trim()

    def _endpoint(self, key: str) -> Endpoint:
        if self._session is None:
            raise _closed()
        key = key or DEFAULT_SIGNATURE
        try:
            return self._endpoints[key]
        except KeyError:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.'
            ) from None

    def _run_in_time(
        self, key: str, arrays: Mapping[str, np.ndarray], timeout: float | None
    ) -> dict[str, np.ndarray]:
        """Runs the session; where it may decode images, in threads that may be left behind."""
        strings = [array for array in arrays.values() if array.dtype.kind == "O"]
        if not strings:
            return self._run_session(key, arrays, timeout)

        def run() -> dict[str, np.ndarray]:
            for array in strings:
                png_streams.check(array)
            return self._run_session(key, arrays, timeout)

        return run() if self._images is None else self._images.run(run, timeout)

    def _run_session(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        timeout: float | None,
    ) -> dict[str, np.ndarray]:
        # Both are read once: `close` may come at any moment.
        session, endpoint = self._session, self._endpoints.get(key)
        if session is None or endpoint is None:
            raise _closed()
        feeds = {endpoint.inputs[name].tensor: array for name, array in arrays.items()}
        options = None
        if timeout is not None:
            milliseconds = min(max(1, round(timeout * 1000)), _LONGEST_TIMEOUT_MS)
            options = config_pb2.RunOptions(timeout_in_ms=milliseconds)
        try:
            return session.run(endpoint.outputs, feeds, options)
        except tf.errors.OpError as error:
            # To what the graph said the session adds where in Python it was built.
            graph_error = error.__context__
            raise translated(
                graph_error if isinstance(graph_error, tf.errors.OpError) else error
            ) from error
        except UnicodeDecodeError as error:
            # The message quotes the request's bytes, and TensorFlow's binding expects text.
            raise invalid(error.object.decode(errors="replace")) from error
        except RuntimeError as error:
            # What a session says that was closed in between.
            raise _closed() from error


def translated(error: tf.errors.OpError) -> ServingError:
    """TensorFlow's error with its canonical code and the first lines of its message.

    The real server adds the names of the graph's nodes, which tell a stranger how it is built.
    """
    text = str(error.message).partition(_GRAPH_NODE)[0]
    asserted = _ASSERTION.fullmatch(text)
    return ServingError(_CODES[error.error_code], (asserted or [text] * 2)[1][:MESSAGE_LIMIT])


def _closed() -> ServingError:
    return ServingError(grpc.StatusCode.CANCELLED, "Session has been closed.")
