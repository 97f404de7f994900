"""What both transports of the client share: its error, what a server tells, and when to try again.

Imports no TensorFlow, as the client needs none.
"""

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import grpc

_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 5.0

#: The input that takes the bytes of image files.
IMAGE_INPUT = "image_bytes"

_Answer = TypeVar("_Answer")


class ClientError(Exception):
    """A request that got no answer.

    Attributes:
        code: Canonical status code, over either transport. REST calls every fault of a request
            INVALID_ARGUMENT.
        message: What the server said, or what happened on the way to it.
        images: Positions of the images that the request held; empty where it held none.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, images: Sequence[int] = ()) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.images = tuple(images)

    def __str__(self) -> str:
        # TensorFlow adds lines about its graph, and what is no such server may send anything.
        first_line = (self.message.splitlines() or [""])[0]
        printable = "".join(each if each.isprintable() else "?" for each in first_line)
        return f"{self.code.name}: {printable}"


@dataclasses.dataclass(frozen=True)
class Target:
    """Which model a request is for.

    Attributes:
        model: Its name.
        version: Its version; None for the one that the label, or the server, chooses.
        label: Version label, such as "stable"; None for none.
    """

    model: str
    version: int | None = None
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What an input or an output of a signature is.

    Attributes:
        dtype: TensorFlow's name, such as "DT_FLOAT".
        shape: Sizes, None for any; None as a whole where the rank is unknown.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a signature by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """What a server tells about the version that answers.

    Attributes:
        model: Name.
        version: Number.
        signatures: Signatures by name.
    """

    model: str
    version: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """How a version of a model is.

    Attributes:
        version: Number.
        state: "AVAILABLE" when it answers; else "START", "LOADING", "UNLOADING" or "END".
        message: Why it could not be loaded; "" where nothing went wrong.
    """

    version: int
    state: str
    message: str


#: The signature that names every class, and the feature of its examples that holds an image.
CLASSIFY, EXAMPLE_FEATURE = "classify", "image/encoded"


class Transport(Protocol):
    """One request over gRPC or REST; every method raises `ClientError`.

    `timeout` is in seconds.
    """

    def predict(
        self, target: Target, signature: str, images: Sequence[bytes], timeout: float
    ) -> tuple[Mapping[str, Any], int | None]:
        """Returns the outputs, as arrays or lists by name, and the version if it is known."""

    def class_names(self, target: Target, image: bytes, timeout: float) -> tuple[str, ...]:
        """Returns the names of the classes in the model's order, as `CLASSIFY` gives them."""

    def metadata(self, target: Target, timeout: float) -> ModelMetadata:
        """Returns what is served."""

    def status(self, target: Target, timeout: float) -> list[VersionStatus]:
        """Returns the model's versions."""

    def close(self) -> None:
        """Gives back the connections."""


class Retrying:
    """Repeats an attempt as long as the server is UNAVAILABLE, within one deadline.

    Delays double from 0.2 s to 5 s; up to half of each is left to chance, so that clients that
    failed together do not come back together.

    Args:
        retries: Attempts after the first.
        timeout: Seconds for all attempts and delays together.
    """

    def __init__(self, retries: int, timeout: float) -> None:
        self._retries = retries
        self._timeout = timeout
        self._closed = threading.Event()

    def call(self, attempt: Callable[[float], _Answer]) -> _Answer:
        """Returns the first answer.

        Args:
            attempt: Called with the seconds that are left.

        Raises:
            ClientError: The last attempt's error; DEADLINE_EXCEEDED where time ran out in it.
        """
        start = time.monotonic()
        for number in range(self._retries + 1):
            try:
                return attempt(self._timeout - (time.monotonic() - start))
            except ClientError as error:
                if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise ClientError(
                        error.code, f"no answer within {self._timeout:g} s"
                    ) from error
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                delay = min(_FIRST_DELAY_SECONDS * 2**number, _LONGEST_DELAY_SECONDS)
                delay *= random.uniform(0.5, 1.0)
                elapsed = time.monotonic() - start
                if number == self._retries or elapsed + delay >= self._timeout:
                    tried = "1 attempt" if number == 0 else f"{number + 1} attempts"
                    raise ClientError(
                        error.code, f"{error.message} ({tried} in {elapsed:.1f} s)"
                    ) from error
            if self._closed.wait(delay):
                raise ClientError(grpc.StatusCode.CANCELLED, "the client was closed")
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Ends every delay."""
        self._closed.set()
