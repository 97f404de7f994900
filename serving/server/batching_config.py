"""TensorFlow Serving's batching.config: the official message, read from its text form.

`tensorflow.serving.BatchingParameters` is not in the tensorflow-serving-api wheel, so its
descriptor is built here, field by field as in TensorFlow Serving's
tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
"""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.server.errors import ServingError, invalid


def _message_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name="serving/batching_parameters.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = proto.message_type.add(name="BatchingParameters")

    def add(name: str, number: int, **kind: Any) -> None:
        message.field.add(name=name, number=number, **{"label": field.LABEL_OPTIONAL, **kind})

    int64_value = {"type": field.TYPE_MESSAGE, "type_name": ".google.protobuf.Int64Value"}
    string_value = {"type": field.TYPE_MESSAGE, "type_name": ".google.protobuf.StringValue"}
    add("max_batch_size", 1, **int64_value)
    add("batch_timeout_micros", 2, **int64_value)
    add("max_enqueued_batches", 3, **int64_value)
    add("num_batch_threads", 4, **int64_value)
    add("thread_pool_name", 5, **string_value)
    add("allowed_batch_sizes", 6, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    add("pad_variable_length_inputs", 7, type=field.TYPE_BOOL)
    # A pool of its own: another package may bring the official file.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(proto)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    )


#: The official message, for whoever writes such a file.
BatchingParametersProto = _message_class()


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
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"{path}: cannot be read: {error}") from error
    message = BatchingParametersProto()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise invalid(
            f"{path}: expected a tensorflow.serving.BatchingParameters in text form: {error}"
        ) from error
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
