"""Asks a model server what it sees on images, over gRPC or REST.

    with Client("localhost:8500") as client:
        for prediction in client.predict([Path("cell.png").read_bytes()]):
            print(prediction.label, prediction.hsil_plus)

Works against TensorFlow Serving and `serving.server` alike: it uses only what both promise.
"""

import dataclasses
import functools
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from replication.naming.prediction import Prediction
from serving.client import transport
from serving.client.transport import ClientError, ModelMetadata, VersionStatus
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

#: Outputs without which an answer is none.
REQUIRED_OUTPUTS = ("probabilities", "label", "class_id")

#: What both transports say of an address where nobody listens, or that there is not.
_NOBODY = re.compile(r"refused|resol|name or service", re.IGNORECASE)

#: The papers' classes by their number, whose names need not be asked for.
_PAPERS = {len(names): names for names in (STAGE1_CLASSES, STAGE2_CLASSES)}


class Client:
    """One model of one server. May be used by several threads at a time.

    A request that fails because the server is UNAVAILABLE (over REST: 503, or a connection refused
    or reset before an answer) is repeated with growing delays; no other failure is.

    Args:
        server: "host:port"; for REST also a URL up to "/v1".
        rest: Speaks REST; else gRPC. Neither imports TensorFlow.
        model: Name of the model.
        version: Version to ask; None for the one that the label, or the server, chooses.
        label: Version label to ask, such as "stable"; None for none. Not with `version`.
        signature: Signature that takes `image_bytes`.
        timeout: Seconds for one request, its repetitions included. (Over REST an answer that has
            begun may take longer, but no single wait for its rest.)
        retries: Repetitions of a request.
        token: Bearer token; None for none.
        tls: A file of certificate authorities in PEM form to trust, or True for those that the
            transport trusts by itself; False for a connection that is not encrypted.
        batch_size: Images a request.

    Raises:
        ValueError: An argument is out of its range.
        OSError: The file of certificate authorities cannot be read.
    """

    def __init__(
        self,
        server: str,
        *,
        rest: bool = False,
        model: str = "pap_stage2",
        version: int | None = None,
        label: str | None = None,
        signature: str = "serving_default",
        timeout: float = 30.0,
        retries: int = 4,
        token: str | None = None,
        tls: bool | str | Path = False,
        batch_size: int = 32,
    ) -> None:
        if version is not None and label is not None:
            raise ValueError("version and label: expected one of them")
        if timeout <= 0 or retries < 0 or batch_size < 1:
            raise ValueError(
                "expected timeout > 0, retries >= 0 and batch_size >= 1, "
                f"got {timeout}, {retries} and {batch_size}"
            )
        self._target = transport.Target(model, version, label)
        self._signature = signature
        self._batch_size = batch_size
        self._retrying = transport.Retrying(retries, timeout)
        self._first = transport.Retrying(0, timeout)
        # None until a model of other classes than the papers' was asked for their names.
        self._names: tuple[str, ...] | None = None
        self._naming = threading.Lock()
        self._classifies = False
        self._transport: transport.Transport
        if rest:
            from serving.client.over_rest import RestTransport

            self._transport = RestTransport(server, token=token, tls=tls)
        else:
            from serving.client.over_grpc import GrpcTransport

            self._transport = GrpcTransport(server, token=token, tls=tls)

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """Asks what is on images.

        Args:
            images: Contents of image files (JPEG, PNG, BMP); more than `batch_size` go out in
                several requests, one after another.

        Returns:
            A prediction an image, in the same order.

        Raises:
            ClientError: A request failed; `images` are the positions of those that it held. One
                image that cannot be read makes the server refuse all of its request.
        """
        predictions = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            try:
                outputs, version = self._retrying.call(
                    functools.partial(self._transport.predict, self._target, self._signature, batch)
                )
                answers = self._predictions(outputs, version, len(batch))
                predictions += self._named(answers, batch)
            except ClientError as error:
                positions = range(start, start + len(batch))
                raise ClientError(error.code, error.message, images=positions) from error
        return predictions

    def metadata(self) -> ModelMetadata:
        """Returns the version that answers and its signatures.

        Raises:
            ClientError: The server does not answer, or has no such model, version or label.
        """
        return self._retrying.call(lambda timeout: self._transport.metadata(self._target, timeout))

    def status(self) -> list[VersionStatus]:
        """Returns the versions of the model, those included that were unloaded.

        Raises:
            ClientError: The server does not answer, or has no such model.
        """
        return self._retrying.call(lambda timeout: self._transport.status(self._target, timeout))

    def check(self) -> ModelMetadata:
        """Returns the metadata, if the signature takes images and names what is on them.

        Where nobody listens it is asked for once: a mistyped address is told without a wait.

        Raises:
            ClientError: As `metadata`; or FAILED_PRECONDITION, naming what is missing.
        """
        try:
            metadata = self._first.call(lambda t: self._transport.metadata(self._target, t))
        except ClientError as error:
            if error.code != grpc.StatusCode.UNAVAILABLE or _NOBODY.search(error.message):
                raise
            # A server that is slow to answer is there.
            metadata = self.metadata()
        signature = metadata.signatures.get(self._signature)
        if signature is None:
            expected = ", ".join(sorted(metadata.signatures))
            raise self._unfit(f"no such signature, expected one of {expected}")
        if set(signature.inputs) != {transport.IMAGE_INPUT}:
            raise self._unfit(
                f"expected the input {transport.IMAGE_INPUT}, found {_listed(signature.inputs)}"
            )
        self._check_outputs(signature.outputs)
        self._classifies = transport.CLASSIFY in metadata.signatures
        return metadata

    def _class_names(self, image: bytes) -> tuple[str, ...]:
        """Names of all classes; none where the model, as `check` saw it, cannot tell."""
        if not self._classifies:
            return ()
        ask = functools.partial(self._transport.class_names, self._target, image)
        try:
            return self._retrying.call(ask)
        except ClientError:
            # The answers themselves are whole; numbers stand for names.
            return ()

    def _named(self, answers: list[Prediction], batch: Sequence[bytes]) -> list[Prediction]:
        """Adds the names of all classes, for which a model of a lab's own is asked once."""
        if all(one.label in _PAPERS.get(len(one.probabilities), ()) for one in answers):
            return answers
        with self._naming:
            if self._names is None:
                self._names = self._class_names(batch[0])
        names = self._names
        if any(len(names) != len(one.probabilities) for one in answers):
            return answers
        return [dataclasses.replace(one, names=names) for one in answers]

    def close(self) -> None:
        """Gives back the connections and ends waiting; requests under way may fail."""
        self._retrying.close()
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _predictions(
        self, outputs: Mapping[str, Any], version: int | None, count: int
    ) -> list[Prediction]:
        self._check_outputs(outputs)
        hsil_plus = outputs.get("hsil_plus", [None] * count)
        abstain = outputs.get("abstain", [None] * count)
        columns = [outputs[name] for name in REQUIRED_OUTPUTS] + [hsil_plus, abstain]
        try:
            predictions = [
                Prediction(
                    probabilities=tuple(float(each) for each in probabilities),
                    label=label.decode(errors="replace")
                    if isinstance(label, bytes)
                    else str(label),
                    class_id=int(class_id),
                    hsil_plus=None if positive is None else float(positive),
                    abstain=None if abstains is None else bool(abstains),
                    model_version=version,
                )
                for probabilities, label, class_id, positive, abstains in zip(*columns, strict=True)
            ]
        except (TypeError, ValueError):
            predictions = []
        if len(predictions) != count:
            raise self._unfit(f"expected an answer for each of {count} images in every output")
        return predictions

    def _check_outputs(self, outputs: Iterable[str]) -> None:
        missing = [name for name in REQUIRED_OUTPUTS if name not in outputs]
        if missing:
            raise self._unfit(
                f"expected the outputs {', '.join(REQUIRED_OUTPUTS)}, found {_listed(outputs)}"
            )

    def _unfit(self, why: str) -> ClientError:
        return ClientError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"signature {self._signature} of {self._target.model}: {why}",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
