"""Names the cells of images with a served model: TensorFlow Serving's, or serving.server's.

    python -m serving.predict --server=localhost:8500 image.jpg folder/ --csv=cells.csv
    python -m serving.predict --rest --server=localhost:8501 folder/ --json=cells.jsonl

An image that cannot be read is named at the end and does not keep the others from an answer.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import shared
from tfds_pap import commands, path_flags
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    from replication.naming.output import Output
    from replication.naming.prediction import Prediction
    from serving.client import Client

_SERVER = flags.DEFINE_string(
    "server",
    None,
    "host:port of the server; with --rest also a URL (default: localhost:8500, with --rest "
    "localhost:8501).",
)
_REST = flags.DEFINE_bool("rest", False, "Speak REST instead of gRPC (default: off).")
_MODEL = flags.DEFINE_string("model", "pap_stage2", "Name of the model (default: pap_stage2).")
_VERSION = flags.DEFINE_integer(
    "version", None, "Version of the model (default: the one that the server chooses).", 0
)
_LABEL = flags.DEFINE_string(
    "label", None, "Version label, such as stable or canary (default: none)."
)
_SIGNATURE = flags.DEFINE_string(
    "signature", "serving_default", "Signature that takes images (default: serving_default)."
)
_CSV = shared.csv("Write a table to this CSV file (default: none).")
_JSON = path_flags.define(
    "json", None, "Write JSON lines to this file (default: none).", path_flags.NEW_FILE
)
_BATCH_SIZE = shared.batch_size(32, "Images a request (default: 32).")
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 4, "Requests under way at a time (default: 4).", 1, 256
)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 30.0, "Seconds for a request, its repetitions included (default: 30).", 0.001
)
_RETRIES = flags.DEFINE_integer(
    "retries",
    4,
    "Repetitions of a request while the server is unavailable; the first question, whether it is "
    "there, is not repeated (default: 4).",
    0,
)
_MAX_IMAGE_BYTES = flags.DEFINE_integer(
    "max_image_bytes", 32 * 2**20, "Larger files are not sent (default: 32 MiB).", 1
)
_BEARER_TOKEN_FILE = path_flags.define(
    "bearer_token_file",
    None,
    "File that holds the server's bearer token (default: none).",
    path_flags.FILE,
)
_TLS_CA = flags.DEFINE_string(
    "tls_ca",
    None,
    "Encrypt, and trust the certificate authorities in this PEM file; 'default' for those that "
    "come with the libraries (default: no encryption).",
)


def main(argv: list[str]) -> None:
    """Finds the images, asks in batches, writes as answers come in."""
    if len(argv) < 2:
        raise app.UsageError("expected images or folders: image.jpg folder/ ...")
    if _VERSION.value is not None and _LABEL.value is not None:
        raise app.UsageError("--version and --label: expected one of them")
    if _CSV.value is not None and _CSV.value == _JSON.value:
        raise app.UsageError("--csv and --json: expected two files")
    commands.quiet_logs()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # What is wrong with an image is told in one line at the end.
    warnings.filterwarnings("ignore", module="PIL")
    from replication.naming.output import RESEARCH_LINE
    from tfds_pap import folders

    paths = folders.expand_images(argv[1:])
    output, seconds = _predict_all(paths)
    if len(paths) <= len(output.rows):
        output.print_table()
    print(output.summary.line(_MODEL.value, seconds))
    print(RESEARCH_LINE)
    if output.summary.failures:
        raise output.failed("have no answer")


def _predict_all(paths: list[str]) -> tuple["Output", float]:
    """Returns what was written, and the seconds that the requests took.

    Raises:
        PapError: In one line, what the server or a file is at fault for, and where the answers
            until then lie.
        KeyboardInterrupt: With the latter.
    """
    from replication.naming.output import Output

    with _server_is_named(), _connect() as client:
        _check(client)
        output = Output(*(path and Path(path) for path in (_CSV.value, _JSON.value)))
        with output, _server_is_named():
            seconds = _predict(client, paths, output)
    return output, seconds


@contextlib.contextmanager
def _server_is_named() -> Iterator[None]:
    """Says which server is at fault."""
    from serving.client import ClientError

    try:
        yield
    except ClientError as error:
        raise PapError(f"{_server()}: {error}") from error


def _check(client: "Client") -> None:
    """Asks whether the model is there and takes images; a wrong name gets a hint.

    Raises:
        ClientError: As `Client.check`.
    """
    import grpc

    from serving.client import ClientError

    try:
        client.check()
    except ClientError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
        try:
            versions = [each for each in client.status() if each.state == "AVAILABLE"]
        except ClientError:
            versions = []
        hint = (
            f"--model={_MODEL.value}: expected a model that is served; its name is that of the "
            "folder that holds its versions"
        )
        if versions:
            served = ", ".join(str(each.version) for each in versions)
            hint = f"--version, --label: of {_MODEL.value} it serves version {served}"
        raise ClientError(error.code, f"{error.message} ({hint})") from error


def _server() -> str:
    return _SERVER.value or ("localhost:8501" if _REST.value else "localhost:8500")


def _connect() -> "Client":
    from serving.client import Client

    token = _BEARER_TOKEN_FILE.value and Path(_BEARER_TOKEN_FILE.value).read_text("ascii").strip()
    tls: bool | Path = _TLS_CA.value == "default"
    if _TLS_CA.value and not tls:
        tls = Path(_TLS_CA.value).expanduser()
    return Client(
        _server(),
        rest=_REST.value,
        model=_MODEL.value,
        version=_VERSION.value,
        label=_LABEL.value,
        signature=_SIGNATURE.value,
        timeout=_TIMEOUT.value,
        retries=_RETRIES.value,
        token=token,
        tls=tls,
        batch_size=_BATCH_SIZE.value,
    )


def _predict(client: "Client", paths: list[str], output: "Output") -> float:
    """Writes an answer for each image, in order; returns the seconds that took."""
    from multiprocessing.pool import ThreadPool

    import tqdm

    start = time.monotonic()
    batches = (
        paths[first : first + _BATCH_SIZE.value]
        for first in range(0, len(paths), _BATCH_SIZE.value)
    )
    # A worker reads its images itself, so that only those of requests under way are in memory.
    with (
        ThreadPool(_CONCURRENCY.value) as pool,
        tqdm.tqdm(total=len(paths), unit="image", disable=None) as progress,
    ):
        for answers in pool.imap(lambda batch: _ask(client, batch), batches):
            for path, found in answers:
                output.write(path, found)
            progress.update(len(answers))
    return time.monotonic() - start


def _ask(client: "Client", paths: list[str]) -> list[tuple[str, "Prediction | str"]]:
    """Returns a prediction, or the reason why there is none, for each image of a batch."""
    import grpc

    from replication.naming import reading
    from serving.client import ClientError

    answers: dict[int, Prediction | str] = {}
    images: dict[int, bytes] = {}
    for number, path in enumerate(paths):
        try:
            images[number] = reading.read(path, max_bytes=_MAX_IMAGE_BYTES.value)
        except PapError as error:
            answers[number] = str(error)
    try:
        answers.update(zip(images, client.predict(list(images.values())), strict=True))
    except ClientError as error:
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        if error.code not in refused:
            raise
        if len(images) == 1:
            answers[next(iter(images))] = str(error)
            images.clear()
        # One image spoils the whole request, or the request is too large: each alone.
        for number, image in images.items():
            try:
                (answers[number],) = client.predict([image])
            except ClientError as error:
                if error.code not in refused:
                    raise
                answers[number] = str(error)
    return [(path, answers[number]) for number, path in enumerate(paths)]


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
