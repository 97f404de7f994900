"""Official messages that the tensorflow-serving-api wheel lacks, read from files in text form."""

from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.server.errors import invalid

PACKAGE = "tensorflow.serving"


def message_class(name: str, messages: str) -> Any:
    """Makes the class of a message of TensorFlow Serving.

    Args:
        name: The message's, in the package `tensorflow.serving`.
        messages: It and those that it consists of, as `message_type` of a FileDescriptorProto in
            text form.

    Example:
        >>> field = 'field { name: "path" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }'
        >>> message_class("Where", 'message_type { name: "Where" %s }' % field)(path="/").path
        '/'
    """
    proto = descriptor_pb2.FileDescriptorProto(
        name=f"serving/{name}.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    # A pool of its own: another package may bring the official file.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(text_format.Parse(messages, proto))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def read(path: Path, message: Any) -> Any:
    """Fills a message from a file in text form, and returns it.

    Raises:
        ServingError: INVALID_ARGUMENT, one line naming the file and what was expected.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"{path}: cannot be read: {error}") from None
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise invalid(f"{path}: expected a {name} in text form: {error}") from None
