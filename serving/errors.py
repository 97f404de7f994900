"""The one error that every part of the server raises and each front translates."""

import grpc


class ServingError(Exception):
    """A request, or the loading of a version, that failed for a stated reason.

    Attributes:
        code: Canonical status code; REST translates it to an HTTP status.
        message: What went wrong, in TensorFlow Serving's words where it has any.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
