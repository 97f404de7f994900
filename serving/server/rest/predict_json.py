"""The bodies of REST's predict: JSON to arrays by a signature's inputs, and arrays to JSON.

Rules and words are TensorFlow Serving's. Regular lists of numbers, which images are, are converted
in one go; the walk over every value gives the same arrays, and says what is wrong with a value.
"""

import base64
import binascii
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.errors import ServingError, invalid
from serving.server.rest import json_text
from serving.server.rest.json_text import quoted, type_name

Signatures = Mapping[str, meta_graph_pb2.SignatureDef]
Inputs = Mapping[str, meta_graph_pb2.TensorInfo]

#: What makes an object of one member a string of bytes.
_BASE64 = "b64"

#: Lists within lists that an array can have, one less for the batch.
_MAX_RANK = 32

#: Values that are looked at one by one: strings, and what is wrong somewhere. 4 us each; of numbers
#: that fit any number is converted at once.
_MAX_WALKED = 2**18

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

#: Dtypes of outputs that are written; strings besides.
_WRITTEN = frozenset(
    map(np.dtype, ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", np.bool_))
)


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
        ServingError: INVALID_ARGUMENT in the real server's words.
    """
    name = signature_name(document)
    key = name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
    if key not in signatures:
        raise invalid(f'Serving signature name: "{key}" not found in signature def')
    infos = signatures[key].inputs
    if not infos:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise invalid(
                f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of "
                "'inputs' or 'instances' keys to exist "
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(
                f"JSON Value: {quoted(document)} Expecting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid(f"JSON Value: {quoted(document)} No values in 'instances' array")
        return PredictCall(name, _from_rows(instances, infos), True)
    if "inputs" in document:
        return PredictCall(name, _from_columns(document["inputs"], infos), False)
    raise invalid("Missing 'inputs' or 'instances' key")


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names; "" if it names none.

    Raises:
        ServingError: INVALID_ARGUMENT, if it is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
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
    text = value[_BASE64]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        text = "".join(text.split())
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
    if np.isfinite(value) and abs(value) > limit:
        raise invalid(
            f"Cannot convert JSON value: {quoted(value)} to {_dtype_name(dtype)} without loss of "
            "precision."
        )


# -- Requests ------------------------------------------------------------------------------------


def _from_rows(instances: list, infos: Inputs) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    names = sorted(infos)
    if _is_row(instances[0]):
        if all(_is_row(row) and row.keys() == infos.keys() for row in instances):
            columns = {name: [row[name] for row in instances] for name in names}
        else:
            columns = None
    else:
        columns = None if any(map(_is_row, instances)) else {names[0]: instances}
    if columns is not None:
        arrays = {name: _at_once(column, infos[name].dtype) for name, column in columns.items()}
        if all(array is not None for array in arrays.values()):
            return arrays
    return _row_by_row(instances, infos)


def _is_row(value: Any) -> bool:
    """Whether an instance names its inputs."""
    return isinstance(value, dict) and not is_base64(value)


def _row_by_row(instances: list, infos: Inputs) -> dict[str, np.ndarray]:
    are_rows = _is_row(instances[0])
    first_name = min(infos)
    collected: dict[str, _Tensor] = {}
    for number, instance in enumerate(instances):
        _check_walked(number)
        if are_rows != _is_row(instance):
            expected, got = ("object", "list") if are_rows else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {number} of input list")
        for name, value in instance.items() if are_rows else [(first_name, instance)]:
            try:
                _add(collected, name, value, infos)
            except ServingError as error:
                key = f" key: {name}" if are_rows else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: {error.code.name}: {error.message}"
                ) from None
        if are_rows and instance.keys() != infos.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{quoted(instance)} must only have keys: {','.join(sorted(infos))}"
            )
    return {
        name: _array(tensor.values, (len(instances), *tensor.shape), infos[name].dtype)
        for name, tensor in collected.items()
    }


def _add(collected: dict[str, "_Tensor"], name: str, value: Any, infos: Inputs) -> None:
    if name not in infos:
        raise invalid(f"JSON object: does not have named input: {name}")
    added = _walk(value, infos[name].dtype)
    known = collected.setdefault(name, _Tensor([], added.shape))
    sizes = [math.prod(shape) for shape in (known.shape, added.shape)]
    if sizes[0] != sizes[1]:
        raise invalid(f"Expecting tensor size: {sizes[0]} but got: {sizes[1]}")
    if known.shape != added.shape:
        raise invalid(
            f"Expecting shape {_shape_text(known.shape)} but got: {_shape_text(added.shape)}"
        )
    known.values.extend(added.values)
    _check_walked(len(known.values))


def _from_columns(value: Any, infos: Inputs) -> dict[str, np.ndarray]:
    if _is_row(value):
        columns = {}
        for name in sorted(infos):
            if name not in value:
                raise invalid(f"Missing named input: {name} in 'inputs' object.")
            columns[name] = value[name]
    elif len(infos) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    else:
        columns = {min(infos): value}
    found = {}
    for name, column in columns.items():
        dtype = infos[name].dtype
        array = _at_once(column, dtype) if isinstance(column, list) else None
        found[name] = _array(*_walk(column, dtype), dtype) if array is None else array
    return found


class _Tensor(NamedTuple):
    """The values in the order of the shape."""

    values: list
    shape: tuple[int, ...]


def _at_once(column: list, dtype: int) -> np.ndarray | None:
    """The array of a regular list of numbers that all fit the dtype; None for any other list."""
    shape, values = [len(column)], column
    while values and isinstance(values[0], list) and len(shape) <= _MAX_RANK:
        if set(map(type, values)) != {list} or len(sizes := set(map(len, values))) > 1:
            return None
        shape.append(sizes.pop())
        values = list(itertools.chain.from_iterable(values))
    types = set(map(type, values))
    if dtype == types_pb2.DT_BOOL:
        fit = types <= {bool}
    elif dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        fit = types <= {int} and low <= min(values, default=0) and max(values, default=0) <= high
    elif dtype in _FLOATS and types <= {int, float}:
        largest_integer, largest = _FLOATS[dtype]
        numbers, values = values, np.array(values, np.float64)
        magnitudes = np.abs(values)
        fit = magnitudes.max(initial=0) <= largest_integer
        if not fit:
            integers = [abs(value) for value in numbers if type(value) is int]
            fit = max(integers, default=0) <= largest_integer and not np.any(
                magnitudes[np.isfinite(magnitudes)] > largest
            )
    else:
        fit = False
    return _array(values, shape, dtype) if fit else None


def _walk(value: Any, dtype: int) -> _Tensor:
    """The tensor that a value is, looked at one by one."""
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    rank = len(shape)
    if rank > _MAX_RANK:
        raise invalid(
            f"Encountered lists that are nested {rank} deep, expected {_MAX_RANK} or less"
        )
    values, lists = [], [0] * rank

    def fill(item: Any, level: int) -> None:
        if not isinstance(item, list):
            if level != rank:
                raise invalid(
                    f"JSON Value: {quoted(item)} found at incorrect level: {level + 1} in the "
                    f"JSON DOM. Expected at level: {rank}"
                )
            values.append(_read(item, dtype))
            _check_walked(len(values))
            return
        if level >= rank:
            raise invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(item) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(item)} at level: {level} "
                f"expected size: {shape[level]}"
            )
        lists[level] += 1
        _check_walked(lists[level])
        for each in item:
            fill(each, level + 1)

    fill(value, 0)
    return _Tensor(values, tuple(shape))


def _check_walked(count: int) -> None:
    if count > _MAX_WALKED:
        raise invalid(f"Expecting at most {_MAX_WALKED} values that are not all numbers that fit")


def _read(value: Any, dtype: int) -> Any:
    """One value as its array holds it."""
    if dtype == types_pb2.DT_STRING and isinstance(value, dict):
        if not is_base64(value):
            raise invalid(f"JSON Value: {quoted(value)} not formatted correctly for base64 data")
        return decode_base64(value)
    if dtype == types_pb2.DT_STRING:
        fits = isinstance(value, str)
    elif dtype == types_pb2.DT_BOOL:
        fits = isinstance(value, bool)
    elif dtype in _FLOATS:
        fits = type(value) in (int, float)
    elif dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        fits = type(value) is int and low <= value <= high
    else:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quoted(value)} to type: {_dtype_name(dtype)}",
        )
    if not fits:
        raise invalid(
            f"JSON Value: {quoted(value)} Type: {type_name(value)} is not of expected type: "
            f"{_dtype_name(dtype)}"
        )
    if dtype in _FLOATS:
        check_float(value, dtype)
    return value.encode() if isinstance(value, str) else value


def _array(values: Sequence, shape: Sequence[int], dtype: int) -> np.ndarray:
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    if dtype in _FLOATS:
        wide = np.float64
    else:
        wide = np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64
    return np.array(values, wide).astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype).reshape(shape)


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def _shape_text(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


# -- Answers -------------------------------------------------------------------------------------


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows is not None and len(array) != rows:
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
        raise invalid(f"Failed to write JSON value for tensor type: {_dtype_name(dtype)}")
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
