"""TensorFlow Serving's batching.config: the official message, read from its text form.

Its fields are those of tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
"""

import dataclasses
import itertools
import os
from pathlib import Path

from serving import messages
from serving.server import text_messages
from serving.server.errors import ServingError, invalid

#: The official message, for whoever writes such a file.
BatchingParametersProto = messages.classes(
    "BatchingParameters: Int64Value max_batch_size 1, Int64Value batch_timeout_micros 2, "
    "Int64Value max_enqueued_batches 3, Int64Value num_batch_threads 4, "
    "StringValue thread_pool_name 5, int64* allowed_batch_sizes 6, "
    "bool pad_variable_length_inputs 7"
)["BatchingParameters"]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """How concurrent requests are merged; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: Rows that a batch may have; a larger request is refused.
        batch_timeout_micros: Microseconds that a batch waits for company.
        max_enqueued_batches: Batches that may wait; further requests are refused as UNAVAILABLE.
        num_batch_threads: Batches that run at the same time; as many as the processors if None.
        allowed_batch_sizes: Sizes to which batches are padded, increasing, the last one
            `max_batch_size`; empty for any size.

    Raises:
        ServingError: INVALID_ARGUMENT, naming the attribute and what was expected.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 1),
        ):
            if getattr(self, name) < least:
                raise invalid(f"{name}: expected {least} or more, got {getattr(self, name)}")
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise invalid(
                f"allowed_batch_sizes: expected increasing sizes of 1 or more, got {list(sizes)}"
            )
        if sizes[-1] != self.max_batch_size:
            raise invalid(
                "allowed_batch_sizes: Last entry in allowed_batch_sizes must match "
                f"max_batch_size; last entry was {sizes[-1]}; expected {self.max_batch_size}"
            )


def read(path: str | Path) -> BatchingParameters:
    """Reads a batching.config as `--batching_parameters_file` of TensorFlow Serving takes it.

    Raises:
        ServingError: INVALID_ARGUMENT, one line naming the file and the field.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "batching.config"
        >>> _ = path.write_text("max_batch_size { value: 32 } num_batch_threads { value: 2 }")
        >>> read(path)  # doctest: +NORMALIZE_WHITESPACE
        BatchingParameters(max_batch_size=32, batch_timeout_micros=0, max_enqueued_batches=10,
                           num_batch_threads=2, allowed_batch_sizes=())
    """
    message = text_messages.read(Path(path), BatchingParametersProto())
    if message.pad_variable_length_inputs:
        raise invalid(
            f"{path}: pad_variable_length_inputs: this server merges requests of one shape and "
            "pads none, expected false"
        )
    values = {
        name: getattr(message, name).value
        for name in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        )
        if message.HasField(name)
    }
    try:
        return BatchingParameters(**values, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
    except ServingError as error:
        raise invalid(f"{path}: {error.message}") from None
