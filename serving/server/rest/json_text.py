"""JSON as TensorFlow Serving reads and writes it: RapidJSON's rules, offsets and words."""

import codecs
import collections
import contextlib
import gc
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import rapidjson

from serving.server.errors import invalid

#: Characters of a value that a message quotes; TensorFlow Serving cuts its messages here.
_QUOTED = 1024

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_NUMBERS = rapidjson.NM_NATIVE | rapidjson.NM_NAN
_PARSE_ERROR = re.compile(r"Parse error at offset (\d+): (.*)", re.DOTALL)
_MORE_AFTER_ROOT = "The document root must not be followed by other values."

_TYPES = {type(None): "Null", str: "String", int: "Number", float: "Number", list: "Array"}


class _Decoder(rapidjson.Decoder):
    """Refuses an object that names a key twice: which of the two was meant?"""

    def start_object(self) -> list:
        return []

    def end_object(self, members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) < len(members):
            ((name, _),) = collections.Counter(name for name, _ in members).most_common(1)
            raise invalid(f'JSON Parse error: the key "{name[:100]}" is there twice.')
        return found


_decode = _Decoder(number_mode=_NUMBERS)


def parse(body: bytes) -> dict[str, Any]:
    """Reads the object that a request's body is.

    NaN, Infinity and -Infinity are numbers; what follows the object is ignored, as by the real
    server. Integers beyond 64 bits become floats.

    Raises:
        ServingError: INVALID_ARGUMENT, with RapidJSON's words and the offset in bytes.

    Example:
        >>> parse(b'{"instances": [1, 2.5]}')
        {'instances': [1, 2.5]}
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    document = _load(body[start:], start)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {quoted(document)} Is not object")
    return document


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Values of JSON have no cycles; looking for some takes a third of the time of reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(text: bytes, start: int) -> Any:
    try:
        with _without_collections():
            return _decode(text)
    except rapidjson.JSONDecodeError as error:
        offset, reason = _PARSE_ERROR.fullmatch(str(error)).groups()
        if reason == _MORE_AFTER_ROOT:
            return _decode(text[: int(offset)])
        raise invalid(f"JSON Parse error: {reason} at offset: {start + int(offset)}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Lists and objects are nested too deeply.") from None
    except UnicodeDecodeError:
        raise invalid("JSON Parse error: Invalid encoding in string, expected UTF-8.") from None


def dump(value: Any) -> bytes:
    """Writes a value as the real server does: indented, arrays on one line, NaN and Infinity bare.

    Example:
        >>> print(dump({"predictions": [0.5, float("nan")]}).decode())
        {
            "predictions": [0.5, NaN]
        }
    """
    return _text(value).encode()


def quoted(value: Any) -> str:
    r"""A value for a message, at most as long as a message may be.

    Example:
        >>> quoted(2.0), quoted({"b64": "aGk="})
        ('2.0', '{\n    "b64": "aGk="\n}')
    """
    if isinstance(value, float):
        return _decimal(value)
    try:
        return _text(_beginning(value, [_QUOTED]))[:_QUOTED]
    except RecursionError:
        return "[...]"


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type: Null, False, True, Object, Array, String or Number."""
    if isinstance(value, bool):
        return str(value)
    return _TYPES.get(type(value), "Object")


def shortest(values: np.ndarray) -> np.ndarray:
    """The float64 numbers whose shortest decimals name these float32: six digits, or else nine.

    Example:
        >>> x = np.float32([0.1, 1 / 3])
        >>> x.astype(float).tolist(), shortest(x).tolist()
        ([0.10000000149011612, 0.3333333432674408], [0.1, 0.333333343])
    """
    with np.errstate(all="ignore"):
        exact = values.astype(np.float64)
        magnitude = np.floor(np.log10(np.abs(exact)))
        six, nine = (_rounded(exact, digits - 1 - magnitude) for digits in (6, 9))
        found = np.where(six.astype(np.float32) == values, six, nine)
        # Zero, infinity, NaN, and whatever the rounding could not name.
        return np.where(found.astype(np.float32) == values, found, exact)


def _rounded(values: np.ndarray, decimals: np.ndarray) -> np.ndarray:
    up, down = 10.0 ** np.maximum(decimals, 0), 10.0 ** np.maximum(-decimals, 0)
    return np.rint(values * up / down) / up * down


def _text(value: Any) -> str:
    return rapidjson.dumps(
        value, indent=4, write_mode=rapidjson.WM_SINGLE_LINE_ARRAY, ensure_ascii=False
    )


def _beginning(value: Any, left: list[int]) -> Any:
    """Enough of a value for a message: every item takes one of the characters left, or more."""
    left[0] -= 1
    if isinstance(value, str):
        left[0] -= len(value)
        return value[:_QUOTED]
    if isinstance(value, list):
        some = itertools.takewhile(lambda _: left[0] > 0, value)
        return [_beginning(item, left) for item in some]
    if isinstance(value, dict):
        pairs = itertools.takewhile(lambda _: left[0] > 0, value.items())
        return {name: _beginning(item, left) for name, item in pairs}
    return value


def _decimal(value: float) -> str:
    """A number alone: six significant digits where they name its float32, else nine."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    narrow = np.float32(value) if abs(value) <= _LARGEST_FLOAT32 else value
    for digits in (6, 9, 17):
        text = f"{float(narrow):.{digits}g}"
        if type(narrow)(text) == narrow:
            break
    return text if "." in text or "e" in text else f"{text}.0"
