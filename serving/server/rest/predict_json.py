"""The bodies of REST's predict: JSON to arrays by a signature's inputs, and arrays to JSON.

What is refused, and the beginning of each message, are TensorFlow Serving's.
"""

import base64
import binascii
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.endpoint import DEFAULT_SIGNATURE
from serving.server.errors import ServingError, invalid
from serving.server.rest import json_text
from serving.server.rest.json_text import shown
from serving.server.tensor_protos import dtype_name, shape_text

Signatures = Mapping[str, meta_graph_pb2.SignatureDef]
Inputs = Mapping[str, meta_graph_pb2.TensorInfo]

#: What makes an object of one member a string of bytes.
_BASE64 = "b64"

#: Lists within lists that an array can have, one less for the batch.
_MAX_RANK = 32

#: Values of a request that Python looks at one by one, up to 10 us each: strings, rows that name
#: their inputs, and what is wrong somewhere. Of numbers that fit any number is converted at once.
_MAX_ONE_BY_ONE = 2**18

#: Lists of a request, 0.3 us each: 80 pictures of 224 x 224 px have as many.
_MAX_LISTS = 2**22

#: The smallest and the largest JSON integer that is read as a dtype; what does not fit the narrow
#: ones wraps, as in the real server.
_INTEGERS = {
    types_pb2.DT_INT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT16: (-(2**31), 2**31 - 1),
    types_pb2.DT_INT32: (-(2**31), 2**31 - 1),
    types_pb2.DT_UINT8: (-(2**31), 2**31 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}

#: The largest JSON integer and the largest JSON number that is read as a dtype.
_FLOATS = {
    types_pb2.DT_FLOAT: (2**24 - 1, float(np.finfo(np.float32).max)),
    types_pb2.DT_DOUBLE: (2**53 - 1, float(np.finfo(np.float64).max)),
}

#: JSON's types, as Python has them, that are read as a dtype.
_TYPES: dict[int, set[type]] = {
    types_pb2.DT_STRING: {str, dict},
    types_pb2.DT_BOOL: {bool},
    **{dtype: {int} for dtype in _INTEGERS},
    **{dtype: {int, float} for dtype in _FLOATS},
}

#: Dtypes of outputs that are written; strings besides.
_WRITTEN = ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?")


class PredictCall(NamedTuple):
    """What a request asks.

    Attributes:
        signature_name: "" where the request names none.
        inputs: Arrays by input name; strings are object arrays of bytes.
        row_form: Whether it came as `instances`, and is answered as `predictions`.
    """

    signature_name: str
    inputs: dict[str, np.ndarray]
    row_form: bool


def parse_predict(document: Mapping[str, Any], signatures: Signatures) -> PredictCall:
    """Reads the body of a predict request.

    Args:
        document: What `json_text.parse` read.
        signatures: The model's, by name.

    Raises:
        ServingError: INVALID_ARGUMENT; UNIMPLEMENTED for an input's dtype that JSON does not reach.
    """
    name = signature_name(document)
    key = name or DEFAULT_SIGNATURE
    if key not in signatures:
        raise invalid(f'Serving signature name: "{key}" not found in signature def')
    infos = signatures[key].inputs
    if not infos:
        raise invalid(f"Failed to get input map for signature: {key}")
    forms = [form for form in ("instances", "inputs") if form in document]
    if not forms:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(forms) > 1:
        raise invalid("JSON Value: expected only one of the keys 'inputs' and 'instances'")
    if forms == ["inputs"]:
        return PredictCall(name, _from_columns(document["inputs"], infos), False)
    instances = document["instances"]
    if not isinstance(instances, list) or not instances:
        raise invalid("JSON Value: 'instances': expected a list of one value or more")
    return PredictCall(name, _from_rows(instances, infos), True)


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; "" if it names none.

    Raises:
        ServingError: INVALID_ARGUMENT, if it is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {shown(name)}: 'signature_name' key must be a string value.")
    return name


def format_predict(outputs: Mapping[str, np.ndarray], row_form: bool) -> bytes:
    """Writes the answer to a predict request; a single output drops its name.

    Float32 values have the fewest digits that read back as the same value. Strings are text, or
    base64 if the output's name ends in `_bytes`.

    Raises:
        ServingError: INVALID_ARGUMENT, if an output cannot be written, or in row form has no row
            for each of the others'.

    Example:
        >>> print(format_predict({"y": np.float32([0.1, 3])}, True).decode())
        {
            "predictions": [0.1, 3.0]
        }
    """
    if row_form:
        _check_rows(outputs)
    columns = {name: _listed(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        (values,) = columns.values()
    elif row_form:
        rows = zip(*columns.values(), strict=True)
        values = [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        values = columns
    return json_text.dump({"predictions" if row_form else "outputs": values})


def is_base64(value: Any) -> bool:
    """Whether a value is `{"b64": "..."}`, a string of bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_BASE64), str)


def decode_base64(value: Mapping[str, str]) -> bytes:
    """The bytes of `{"b64": "..."}`: standard alphabet, white space ignored, padding optional.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    text = "".join(value[_BASE64].split())
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def check_float(value: float, dtype: int) -> None:
    """Refuses a number that a float dtype does not hold.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    largest_integer, largest = _FLOATS[dtype]
    limit = largest_integer if isinstance(value, int) else largest
    if math.isfinite(value) and abs(value) > limit:
        raise invalid(
            f"Cannot convert JSON value: {shown(value)} to {dtype_name(dtype)} without loss of "
            "precision."
        )


# -- Requests ------------------------------------------------------------------------------------


def _from_rows(instances: list, infos: Inputs) -> dict[str, np.ndarray]:
    are_named = _is_row(instances[0])
    if not are_named and len(infos) > 1:
        raise invalid(
            f"instances is a plain list, but expecting list of objects with {_names(infos)}"
        )
    if are_named:
        _check_count(len(instances), _MAX_ONE_BY_ONE, "rows that name their inputs")
    for number, instance in enumerate(instances):
        if are_named != _is_row(instance):
            expected, got = ("object", "list") if are_named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {number} of input list")
        if are_named and instance.keys() != infos.keys():
            raise _bad_row(number, f"expected an object with {_names(infos)}")
    if not are_named:
        return {name: _rows(instances, info.dtype) for name, info in infos.items()}
    return {
        name: _rows([row[name] for row in instances], infos[name].dtype) for name in sorted(infos)
    }


def _from_columns(value: Any, infos: Inputs) -> dict[str, np.ndarray]:
    if not _is_row(value):
        if len(infos) > 1:
            raise invalid(
                f"inputs is a plain value/list, but expecting an object with {_names(infos)}"
            )
        value = {min(infos): value}
    for name in sorted(infos):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(value[name], infos[name].dtype) for name in sorted(infos)}


def _is_row(value: Any) -> bool:
    """Whether an instance names its inputs."""
    return isinstance(value, dict) and not is_base64(value)


def _names(infos: Inputs) -> str:
    return f"the keys {', '.join(sorted(infos))}"


def _rows(values: list, dtype: int) -> np.ndarray:
    """One input of all instances; a message says which instance is at fault."""
    try:
        return _tensor(values, dtype)
    except ServingError:
        shape = None
        for number, value in enumerate(values[:_MAX_ONE_BY_ONE]):
            try:
                row = _tensor(value, dtype)
            except ServingError as error:
                raise _bad_row(number, f"Error: {error.code.name}: {error.message}") from None
            if shape not in (None, row.shape):
                expected, got = shape_text(shape), shape_text(row.shape)
                raise _bad_row(number, f"expected the shape {expected}, got {got}") from None
            shape = row.shape
        raise


def _bad_row(number: int, reason: str) -> ServingError:
    return invalid(f"Failed to process element: {number} of 'instances' list. {reason}")


def _tensor(value: Any, dtype: int) -> np.ndarray:
    """The array of a value, or of lists within lists that are regular."""
    shape: list[int] = []
    values = [value]
    while values and isinstance(values[0], list):
        _check_count(len(values), _MAX_LISTS, "lists")
        if len(shape) > _MAX_RANK:
            raise invalid(f"Encountered lists that are nested more than {_MAX_RANK} deep")
        sizes = {len(each) if isinstance(each, list) else None for each in values}
        size = sizes.pop()
        if size is None or sizes:
            raise invalid(f"Encountered list at unexpected size at level: {len(shape)}")
        shape.append(size)
        values = list(itertools.chain.from_iterable(values))
    if dtype not in _TYPES:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value to type: {dtype_name(dtype)}"
        )
    if not set(map(type, values)) <= _TYPES[dtype]:
        raise _misfit(next(each for each in values if type(each) not in _TYPES[dtype]), dtype)
    return _array(values, dtype).reshape(shape)


def _array(values: list, dtype: int) -> np.ndarray:
    """The one-dimensional array of values of the right types."""
    if dtype == types_pb2.DT_STRING:
        _check_count(len(values), _MAX_ONE_BY_ONE, "strings")
        array = np.empty(len(values), object)
        array[:] = [_bytes(value) for value in values]
        return array
    if dtype in _FLOATS:
        array = np.array(values, np.float64)
        large = np.flatnonzero(~(np.abs(array) <= _FLOATS[dtype][0]))
        _check_count(len(large), _MAX_ONE_BY_ONE, "numbers as large as these")
        for number in large:
            check_float(values[number], dtype)
    else:
        low, high = _INTEGERS.get(dtype, (False, True))
        for value in (min(values, default=low), max(values, default=low)):
            if not low <= value <= high:
                raise _misfit(value, dtype)
        array = np.array(values, np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64)
    return array.astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise invalid(f"Expecting at most {most} {what} in a request, got {count}")


def _bytes(value: str | dict) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not is_base64(value):
        raise invalid("JSON Value: an object is not formatted correctly for base64 data")
    return decode_base64(value)


def _misfit(value: Any, dtype: int) -> ServingError:
    return invalid(f"JSON Value: {shown(value)} is not of expected type: {dtype_name(dtype)}")


# -- Answers -------------------------------------------------------------------------------------


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (None, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)


def _listed(name: str, array: np.ndarray) -> Any:
    """An output as lists of what JSON knows."""
    if array.dtype.kind == "O":
        texts = np.empty(array.shape, object)
        texts.ravel()[:] = [_string(name, value) for value in array.flat]
        return texts.tolist()
    if array.dtype not in _WRITTEN:
        dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
        raise invalid(f"Failed to write JSON value for tensor type: {dtype_name(dtype)}")
    return (json_text.shortest(array) if array.dtype == np.float32 else array).tolist()


def _string(name: str, value: bytes) -> str | dict[str, str]:
    if name.endswith("_bytes"):
        return {_BASE64: base64.b64encode(value).decode()}
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise invalid(
            f"Failed to write JSON value for tensor type: string ({name} is not UTF-8; an output "
            "whose name ends in _bytes is sent as base64)"
        ) from None
