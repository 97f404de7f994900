"""Warm-up requests: written by the export, replayed before a version takes traffic.

The file is TensorFlow Serving's: TFRecords of `tensorflow.serving.PredictionLog` in
assets.extra/tf_serving_warmup_requests.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import handlers
from serving.server.errors import ServingError
from serving.server.servable import Servable
from tfds_pap import files

#: Where the file lies in a version's directory.
FILE = Path("assets.extra") / "tf_serving_warmup_requests"

#: TensorFlow Serving refuses files with more.
MAX_RECORDS = 1000


def read(path: str | Path) -> Iterator[prediction_log_pb2.PredictionLog]:
    """Yields the records of a warm-up file.

    Raises:
        ServingError: DATA_LOSS, naming the file and the record that is cut or no PredictionLog.
    """
    number = 1
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield prediction_log_pb2.PredictionLog.FromString(record)
            number += 1
    except (tf.errors.OpError, DecodeError) as error:
        raise ServingError(
            grpc.StatusCode.DATA_LOSS,
            f"{path}: record {number} is damaged or no PredictionLog. "
            "Please verify your warmup data is in TFRecord format.",
        ) from error


def load(name: str, version: int, path: str | Path, **options: Any) -> Servable:
    """Loads a version as `Servable.load` does, and replays its warm-up requests.

    Args:
        name: The model's name.
        version: The version's number.
        path: The version's directory.
        **options: Of `Servable.load`.

    Raises:
        ServingError: If it cannot be loaded, or one of its warm-up requests fails.
    """
    servable = Servable.load(name, version, path, **options)
    try:
        replay(servable)
    except ServingError:
        servable.close()
        raise
    return servable


def replay(servable: Servable) -> int:
    """Runs a version's warm-up requests, so that its first real request is as fast as the next.

    Args:
        servable: The version; its directory may hold no such file.

    Returns:
        The number of records.

    Raises:
        ServingError: If a record fails, is of a kind that is not replayed (only predict, classify
            and regress are), or is one too many; the message names its number.
    """
    path = servable.path / FILE
    if not path.is_file():
        return 0
    number = 0
    for number, log in enumerate(read(path), 1):
        if number > MAX_RECORDS:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}",
            )
        try:
            _run(servable, log)
        except ServingError as error:
            raise ServingError(
                error.code, f"{path}: warm-up record {number} failed: {error.message}"
            ) from error
    return number


def write(path: str | Path, logs: Iterable[prediction_log_pb2.PredictionLog]) -> None:
    """Writes a warm-up file, whole or not at all.

    Args:
        path: Usually <version>/assets.extra/tf_serving_warmup_requests; directories are made.
        logs: Predict, classify and regress requests, at most `MAX_RECORDS`.
    """
    with files.replacing(Path(path)) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def _run(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        handlers.predict_with(servable, log.predict_log.request)
    elif kind == "classify_log":
        handlers.classify_with(servable, log.classify_log.request)
    elif kind == "regress_log":
        handlers.regress_with(servable, log.regress_log.request)
    else:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"expected a predict_log, classify_log or regress_log, got {kind or 'an empty record'}",
        )
