"""The client's requests over REST."""

import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
import requests
import urllib3

from serving.client import transport

# TensorFlow Serving answers three canonical codes with 400.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONNECTIONS = 32
_QUOTED_CHARACTERS = 200


class RestTransport:
    """Speaks to one server; see `transport.Transport`.

    A REST answer does not say which version gave it. Metadata are therefore asked for before and
    after: where both name the same version, it is the one.

    Args:
        server: "host:port", or a URL up to "/v1".
        token: Bearer token; None for none.
        tls: See `serving.client.Client`.
    """

    def __init__(self, server: str, *, token: str | None, tls: bool | str | Path) -> None:
        scheme = "http" if tls is False else "https"
        self._base = server.rstrip("/") if "://" in server else f"{scheme}://{server}"
        self._session = requests.Session()
        self._verify = str(tls) if isinstance(tls, str | Path) else True
        if token is not None:
            self._session.auth = _Bearer(token)
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS)
        self._session.mount(f"{self._base}/", adapter)
        self._seen: dict[transport.Target, int] = {}
        self._lock = threading.Lock()

    def predict(
        self, target: transport.Target, signature: str, images: Sequence[bytes], timeout: float
    ) -> tuple[dict[str, Any], int | None]:
        """Sends the images in one request; see `transport.Transport`."""
        values = [{"b64": base64.b64encode(image).decode("ascii")} for image in images]
        body = {"signature_name": signature, "inputs": {transport.IMAGE_INPUT: values}}
        deadline = time.monotonic() + timeout
        before = self._version_before(target, deadline)
        answer = self._ask("POST", f"{_path(target)}:predict", deadline, json.dumps(body))
        after = self._version_now(target, deadline)
        outputs = answer.get("outputs")
        # TensorFlow Serving leaves out the name of a single output: it is none of ours.
        outputs = outputs if isinstance(outputs, dict) else {}
        return outputs, before if before == after else None

    def class_names(
        self, target: transport.Target, image: bytes, timeout: float
    ) -> tuple[str, ...]:
        """Asks for the names of the classes; see `transport.Transport`."""
        example = {transport.EXAMPLE_FEATURE: {"b64": base64.b64encode(image).decode("ascii")}}
        body = {"signature_name": transport.CLASSIFY, "examples": [example]}
        deadline = time.monotonic() + timeout
        answer = self._ask("POST", f"{_path(target)}:classify", deadline, json.dumps(body))
        try:
            return tuple(str(label) for label, _ in answer["results"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _not_understood(answer) from error

    def metadata(self, target: transport.Target, timeout: float) -> transport.ModelMetadata:
        """Asks for the signatures; see `transport.Transport`."""
        answer = self._ask("GET", f"{_path(target)}/metadata", time.monotonic() + timeout)
        try:
            spec, signatures = answer["model_spec"], answer["metadata"]["signature_def"]
            return transport.ModelMetadata(
                spec["name"],
                int(spec["version"]),
                {
                    name: transport.Signature(
                        _tensors(signature["inputs"]), _tensors(signature["outputs"])
                    )
                    for name, signature in signatures["signature_def"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_understood(answer) from error

    def status(self, target: transport.Target, timeout: float) -> list[transport.VersionStatus]:
        """Asks for the versions; see `transport.Transport`."""
        answer = self._ask("GET", _path(target), time.monotonic() + timeout)
        try:
            return [
                transport.VersionStatus(
                    int(version["version"]),
                    version["state"],
                    version.get("status", {}).get("error_message", ""),
                )
                for version in answer["model_version_status"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_understood(answer) from error

    def close(self) -> None:
        """Gives back the connections."""
        self._session.close()

    def _version_before(self, target: transport.Target, deadline: float) -> int | None:
        with self._lock:
            seen = self._seen.get(target)
        return self._version_now(target, deadline) if seen is None else seen

    def _version_now(self, target: transport.Target, deadline: float) -> int | None:
        """The version that answers; None where the server does not tell, which is no error."""
        if target.version is not None:
            return target.version
        try:
            version = self.metadata(target, deadline - time.monotonic()).version
        except transport.ClientError:
            return None
        with self._lock:
            self._seen[target] = version
        return version

    def _ask(
        self, method: str, path: str, deadline: float, body: str | None = None
    ) -> dict[str, Any]:
        response, content = self._exchange(method, path, deadline, body)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if response.status_code != 200:
            reason = answer.get("error") if isinstance(answer, dict) else None
            if not isinstance(reason, str):
                reason = f"HTTP {response.status_code}: {_quoted(content)}"
            raise transport.ClientError(
                _CODES.get(response.status_code, grpc.StatusCode.UNKNOWN), reason
            )
        if not isinstance(answer, dict):
            raise _not_understood(content)
        return answer

    def _exchange(
        self, method: str, path: str, deadline: float, body: str | None
    ) -> tuple[requests.Response, str]:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise _too_late()
        unanswered = grpc.StatusCode.UNAVAILABLE
        try:
            response = self._session.request(
                method,
                f"{self._base}/v1/models/{path}",
                data=body,
                headers={"Content-Type": "application/json"},
                # requests passes it on; its types do not know that.
                timeout=cast(Any, urllib3.Timeout(total=seconds)),
                # A redirected POST would arrive as a GET.
                allow_redirects=False,
                stream=True,
                # As the session's own setting, $REQUESTS_CA_BUNDLE would take its place.
                verify=self._verify,
            )
            # An answer that breaks off is no longer a server that cannot be reached.
            unanswered = grpc.StatusCode.UNKNOWN
            with response:
                return response, response.content.decode(errors="replace")
        except requests.RequestException as error:
            cause = _root_cause(error)
            if isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError):
                raise _too_late() from error
            lost = isinstance(error, requests.ConnectionError)
            raise transport.ClientError(
                unanswered if lost else grpc.StatusCode.UNKNOWN,
                f"{self._base}: {str(cause) or type(cause).__name__}",
            ) from error


class _Bearer(requests.auth.AuthBase):
    """Sets the token; as plain header, a ~/.netrc would take its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _path(target: transport.Target) -> str:
    model = urllib.parse.quote(target.model, safe="")
    if target.version is not None:
        return f"{model}/versions/{target.version}"
    if target.label is not None:
        return f"{model}/labels/{urllib.parse.quote(target.label, safe='')}"
    return model


def _tensors(infos: Mapping[str, Any]) -> dict[str, transport.Tensor]:
    tensors = {}
    for name, info in infos.items():
        shape = info["tensor_shape"]
        sizes = [int(dim["size"]) for dim in shape["dim"]]
        tensors[name] = transport.Tensor(
            info["dtype"],
            None if shape["unknown_rank"] else tuple(None if size < 0 else size for size in sizes),
        )
    return tensors


def _root_cause(error: BaseException) -> BaseException:
    """The first cause: requests wraps "connection refused" three times over."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _too_late() -> transport.ClientError:
    return transport.ClientError(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")


def _quoted(text: str) -> str:
    return repr(text[:_QUOTED_CHARACTERS])


def _not_understood(answer: Any) -> transport.ClientError:
    return transport.ClientError(
        grpc.StatusCode.UNKNOWN,
        f"expected an answer as TensorFlow Serving gives it, got {_quoted(str(answer))}",
    )
