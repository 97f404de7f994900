"""Messages of TensorFlow Serving that its package lacks, or has only together with TensorFlow."""

from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

_FIELD = descriptor_pb2.FieldDescriptorProto
_GOOGLE = (any_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR)
_GOOGLE_NAMES = frozenset(name for each in _GOOGLE for name in each.message_types_by_name)
_PACKAGE = "tensorflow.serving"


def classes(text: str) -> dict[str, Any]:
    r"""Makes classes of messages; on the wire they are the official ones.

    Args:
        text: A message a line: its name, and after a colon its fields with commas between. A field
            is its type (a scalar, one of these messages or one of google.protobuf; `*` behind it
            where it is repeated), its name and its number.

    Returns:
        The classes by name, in the package `tensorflow.serving`.

    Example:
        >>> made = classes("Point: double* at 1\nLine: Point start 1, Int64Value width 2")
        >>> line = made["Line"](start={"at": [0.0, 1.5]})
        >>> list(line.start.at), line.HasField("width")
        ([0.0, 1.5], False)
    """
    # A pool of its own: another package may bring the official file.
    pool = descriptor_pool.DescriptorPool()
    for each in _GOOGLE:
        pool.AddSerializedFile(each.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", package=_PACKAGE)
    file.syntax = "proto3"
    file.dependency.extend(each.name for each in _GOOGLE)
    for line in text.strip().splitlines():
        name, _, fields = line.partition(": ")
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            kind, field_name, number = field.split()
            added = message.field.add(name=field_name, number=int(number))
            added.label = _FIELD.LABEL_REPEATED if kind[-1] == "*" else _FIELD.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind.islower():
                added.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
            else:
                added.type = _FIELD.TYPE_MESSAGE
                package = "google.protobuf" if kind in _GOOGLE_NAMES else _PACKAGE
                added.type_name = f".{package}.{kind}"
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}")
        )
        for message in file.message_type
    }
