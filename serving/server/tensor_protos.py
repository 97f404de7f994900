"""TensorProtos to arrays and back: nothing that a client sends may crash or fill the memory.

Reading follows `tf.make_ndarray` (`tensor_content`, typed fields, the last value repeated for what
is missing), with every size checked before anything is allocated. Writing uses the typed fields,
as TensorFlow Serving does.
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.server.errors import ServingError, invalid

#: Bytes that the values missing from a message may be filled up to; a message brings at most its
#: own size of values, this is what it may ask for on top.
MAX_FILLED_BYTES = 2**26

#: Strings of a tensor. An empty one takes two bytes of a message and a hundred of memory.
MAX_STRINGS = 2**20

#: Typed fields: the field, the dtype of its values, the dtype they are read as.
_FIELDS = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT16: ("int_val", np.int32),
    types_pb2.DT_INT8: ("int_val", np.int32),
    types_pb2.DT_UINT8: ("int_val", np.int32),
    types_pb2.DT_UINT16: ("int_val", np.int32),
    types_pb2.DT_HALF: ("half_val", np.int32),
    types_pb2.DT_BFLOAT16: ("half_val", np.int32),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
    types_pb2.DT_COMPLEX64: ("scomplex_val", np.float32),
    types_pb2.DT_COMPLEX128: ("dcomplex_val", np.float64),
    types_pb2.DT_STRING: ("string_val", np.object_),
}

_COMPLEX = (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128)
_BITS = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)

#: Fields of fixed width, that one copy fills: the wire tag and the little-endian dtype.
_PACKED = {types_pb2.DT_FLOAT: (b"\x2a", "<f4"), types_pb2.DT_DOUBLE: (b"\x32", "<f8")}


def to_array(proto: tensor_pb2.TensorProto, name: str) -> np.ndarray:
    """Reads a TensorProto.

    Args:
        proto: As a client sent it.
        name: The input's name, for the message.

    Returns:
        An array; strings are an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT, if shape, dtype and values contradict each other, more than
            `MAX_FILLED_BYTES` were to be filled with the last value, or there are more than
            `MAX_STRINGS`.

    Example:
        >>> to_array(tf.make_tensor_proto([1.0, 2.0]), "x")
        array([1., 2.], dtype=float32)
    """
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise _malformed(name, "its shape is not fully known")
    if proto.dtype not in _FIELDS:
        raise _malformed(name, f"its dtype {proto.dtype} cannot be served")
    # Zero rows do not excuse the other sizes.
    if math.prod(size or 1 for size in shape) > np.iinfo(np.int64).max:
        raise _malformed(name, f"its shape {shape_text(shape)} is too large")
    count = math.prod(shape)
    if max(len(proto.string_val), count * (proto.dtype == types_pb2.DT_STRING)) > MAX_STRINGS:
        raise _malformed(name, f"it has more than {MAX_STRINGS} strings")
    dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
    if proto.tensor_content:
        values = _from_content(proto, dtype, count, name)
    else:
        values = _from_field(proto, dtype, count, name)
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise _malformed(name, str(error)) from None


def fill(proto: tensor_pb2.TensorProto, array: np.ndarray) -> None:
    """Writes an array into the typed fields of an empty TensorProto.

    Args:
        proto: Changed in place.
        array: Of a dtype that TensorFlow knows; an object array holds bytes.

    Example:
        >>> proto = tensor_pb2.TensorProto()
        >>> fill(proto, np.array([3, 4]))
        >>> list(proto.int64_val)
        [3, 4]
    """
    if array.dtype.kind == "O":
        proto.dtype = types_pb2.DT_STRING
    else:
        proto.dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    # An empty message, where there are no dimensions, still says that the shape is known.
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    values = array.ravel()
    if proto.dtype in _PACKED:
        # A hundred times faster than `extend` for a heat map of 224 x 224.
        tag, wire_dtype = _PACKED[proto.dtype]
        content = values.astype(wire_dtype, copy=False).tobytes()
        proto.MergeFromString(tag + _varint(len(content)) + content)
        return
    field, read_as = _FIELDS[proto.dtype]
    if proto.dtype in _BITS:
        values = values.view(np.uint16)
    elif proto.dtype in _COMPLEX:
        values = values.view(read_as)
    getattr(proto, field).extend(values.tolist())


def shape_text(shape: tuple[int, ...] | list[int]) -> str:
    """A shape as TensorFlow writes it: [2,3]; unknown sizes are -1 or ?."""
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape) + "]"


def dtype_name(dtype: int) -> str:
    """A dtype as TensorFlow's messages name it, for example float of DT_FLOAT."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def _from_content(proto: tensor_pb2.TensorProto, dtype: type, count: int, name: str) -> np.ndarray:
    if proto.dtype == types_pb2.DT_STRING:
        raise _malformed(name, "strings are read from string_val, not from tensor_content")
    expected = count * np.dtype(dtype).itemsize
    if len(proto.tensor_content) != expected:
        raise _malformed(
            name, f"its tensor_content has {len(proto.tensor_content)} bytes, expected {expected}"
        )
    content = np.frombuffer(proto.tensor_content, np.uint8)
    if dtype is np.bool_ and np.any(content > 1):
        raise _malformed(name, "its tensor_content holds bytes that are neither true nor false")
    # A copy: the graph wants aligned memory that nobody else owns.
    return content.copy().view(dtype)


def _from_field(proto: tensor_pb2.TensorProto, dtype: type, count: int, name: str) -> np.ndarray:
    field, read_as = _FIELDS[proto.dtype]
    if read_as is np.object_:
        values = np.empty(len(proto.string_val), object)
        values[:] = proto.string_val
    else:
        values = np.array(getattr(proto, field), read_as)
    if proto.dtype in _COMPLEX:
        if len(values) % 2:
            raise _malformed(name, f"its {field} has {len(values)} values, expected pairs")
        values = values.view(dtype)
    elif proto.dtype in _BITS:
        values = values.astype(np.uint16).view(dtype)
    else:
        # Small integers wrap, as in C++.
        values = values.astype(dtype, copy=False)
    if len(values) > count:
        raise _malformed(name, f"its {field} has {len(values)} values, expected {count}")
    missing = count - len(values)
    if not missing:
        return values
    filler = values[-1] if len(values) else (b"" if read_as is np.object_ else dtype(0))
    width = values.itemsize + (len(filler) if read_as is np.object_ else 0)
    if missing * width > MAX_FILLED_BYTES:
        raise _malformed(name, f"its {field} has {len(values)} values, expected {count}")
    filled = np.empty(count, values.dtype)
    filled[: len(values)] = values
    filled[len(values) :] = filler
    return filled


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _malformed(name: str, reason: str) -> ServingError:
    return invalid(f"tensor parsing error: {name} ({reason})")
