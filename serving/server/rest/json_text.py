"""JSON as TensorFlow Serving takes and writes it; RapidJSON, which it uses too, does the work."""

import codecs
import collections
import contextlib
import gc
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import rapidjson

from serving.server.errors import invalid

#: Characters of a value that a message quotes.
_QUOTED = 100

_NUMBERS = rapidjson.NM_NATIVE | rapidjson.NM_NAN
_MORE_AFTER_ROOT = re.compile(r"Parse error at offset (\d+): The document root must not be follow")


class _Decoder(rapidjson.Decoder):
    """Refuses an object that names a key twice: which of the two was meant?"""

    def start_object(self) -> list:
        return []

    def end_object(self, members: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(members)
        if len(values) < len(members):
            ((name, _),) = collections.Counter(name for name, _ in members).most_common(1)
            raise invalid(f'JSON Parse error: the key "{name[:_QUOTED]}" is there twice.')
        return values


_decode = _Decoder(number_mode=_NUMBERS)


def parse(body: bytes) -> dict[str, Any]:
    """Reads the object that a request's body is.

    NaN, Infinity and -Infinity are numbers; what follows the object is ignored, as by the real
    server. Integers beyond 64 bits become floats.

    Raises:
        ServingError: INVALID_ARGUMENT.

    Example:
        >>> parse(b'{"instances": [1, 2.5]}')
        {'instances': [1, 2.5]}
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        with _without_collections():
            try:
                document = _decode(body)
            except rapidjson.JSONDecodeError as error:
                root = _MORE_AFTER_ROOT.match(str(error))
                if root is None:
                    raise
                document = _decode(body[: int(root[1])])
    except (rapidjson.JSONDecodeError, UnicodeDecodeError) as error:
        raise invalid(f"JSON Parse error: {str(error).removeprefix('Parse error ')}") from None
    except RecursionError:
        raise invalid("JSON Parse error: lists and objects are nested too deeply") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} Is not object")
    return document


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Values of JSON have no cycles; looking for some takes half of the time of reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def dump(value: Any) -> bytes:
    """Writes a value as the real server does: indented, arrays on one line, NaN and Infinity bare.

    Example:
        >>> print(dump({"predictions": [0.5, float("nan")]}).decode())
        {
            "predictions": [0.5, NaN]
        }
    """
    return rapidjson.dumps(
        value, indent=4, write_mode=rapidjson.WM_SINGLE_LINE_ARRAY, ensure_ascii=False
    ).encode()


def shown(value: Any) -> str:
    """A value for a message, however large it is.

    Example:
        >>> shown(None), shown("text"), shown([1, 2])
        ('null', '"text"', 'a list')
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return rapidjson.dumps(value[:_QUOTED] if isinstance(value, str) else value, ensure_ascii=False)


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
        decimals = np.where(six.astype(np.float32) == values, six, nine)
        # Zero, infinity, NaN, and whatever the rounding could not name.
        return np.where(decimals.astype(np.float32) == values, decimals, exact)


def _rounded(values: np.ndarray, decimals: np.ndarray) -> np.ndarray:
    up, down = 10.0 ** np.maximum(decimals, 0), 10.0 ** np.maximum(-decimals, 0)
    return np.rint(values * up / down) / up * down
