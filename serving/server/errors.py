"""The one error that every part of the server raises and each front translates."""

import grpc

#: Characters of a message; TensorFlow Serving cuts its own here.
MESSAGE_LIMIT = 1024

#: HTTP status of each canonical code, as in TensorFlow Serving where it has one; 500 for any other.
HTTP_STATUS = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


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


def invalid(message: str) -> ServingError:
    """Returns an INVALID_ARGUMENT with this message."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message[:MESSAGE_LIMIT])
