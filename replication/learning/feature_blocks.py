"""The chunks of a feature store, computed by the workers of a cluster.

A worker computes a chunk just as `features` does in one process: the same batches of the same
size, the same network, the same file. What is left that could differ is the number of threads: the
forward passes of MobileNetV2, ResNet50, EfficientNetB0 and VGG16 had the same bytes with one thread
as with two (float32, processors with AVX-512), but TensorFlow promises that nowhere.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds

from replication.learning import features, weights
from replication.runs import device
from replication.runs.device import DevicePolicy
from tfds_pap import cluster, files, pipeline
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all chunks of a store share."""

    data_dir: str
    spec: features.FeatureSpec
    batch_size: int
    jit_compile: bool
    #: The network's weights where no file has them.
    drawn: Path | None


def compute(
    client: "distributed.Client",
    builder: tfds.core.DatasetBuilder,
    spec: features.FeatureSpec,
    chunks: Sequence[tuple[Path, np.ndarray]],
    policy: DevicePolicy,
    batch_size: int,
) -> dict[str, Any]:
    """Has workers compute and write chunks.

    Args:
        client: From `cluster.connected`.
        builder: A prepared builder, whose files workers see under the same path.
        spec: Which features; workers see its weights under the same path.
        chunks: The file of each, and the positions of its images, which follow one another.
        policy: How to compute.
        batch_size: Images a forward pass.

    Returns:
        What `features.FeatureStore.about` says beside key and weights; the images per second are
        those of one worker.

    Raises:
        PapError: If a worker does not see the same files, or the cluster is lost.
    """
    data_dir = str(Path(builder.data_dir).absolute())
    drawn = None
    if spec.weights.path is None:
        # Seeds are the whole process's: in a worker, Dask's own threads may draw in between.
        drawn = chunks[0][0].absolute().with_name("untrained.weights.h5")
        with files.replacing(drawn, ".weights.h5") as partial:
            spec.extractor().save_weights(partial)
    work = _Work(data_dir, spec, batch_size, policy.jit_compile, drawn)
    ids = pipeline.read_index(builder).ids
    blocks = [
        (work, path.absolute(), int(rows[0]), int(rows[-1]) + 1, ids[rows]) for path, rows in chunks
    ]
    measured, seconds, about = 0, 0.0, dict[str, Any]()
    total = sum(len(rows) for _, rows in chunks) * spec.views
    with (
        features.progress_bar(spec, total) as bar,
        contextlib.closing(cluster.outcomes(client, _compute_one, blocks)) as done,
    ):
        for number, (passes, spent, told) in done:
            measured, seconds, about = measured + passes, seconds + spent, told
            bar.update(len(chunks[number][1]) * spec.views)
    if drawn is not None:
        drawn.unlink()
    return {**about, "images_per_second": measured / seconds}


def _compute_one(
    work: _Work, path: Path, start: int, stop: int, ids: np.ndarray
) -> tuple[int, float, dict[str, Any]]:
    """Runs in a worker; returns images and seconds of the passes, and facts of the network."""
    extractor, about = _extractor(work.spec, work.jit_compile, work.drawn)
    stored, pixels = pipeline.load_part(
        _builder(work.data_dir), start, stop, work.spec.size, work.spec.resize
    )
    if not np.array_equal(stored, ids):
        raise PapError(f"{work.data_dir}: a worker sees other images there than this process")
    batches = (
        tf.constant(pixels[first : first + work.batch_size])
        for first in range(0, len(pixels), work.batch_size)
    )
    spent: list[tuple[int, float]] = []
    values = features.chunk_features(
        extractor,
        batches,
        len(pixels),
        work.spec,
        work.batch_size,
        lambda count, seconds: spent.append((count, seconds)),
    )
    features.write_chunk(path, values, ids)
    # The first pass may pay for tracing.
    told = spent[1:] or spent
    return sum(count for count, _ in told), sum(seconds for _, seconds in told), about


@functools.lru_cache(maxsize=1)
def _builder(data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(data_dir)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PapError(f"{data_dir}: a worker sees no prepared images there ({reason})") from None


@functools.lru_cache(maxsize=1)
def _extractor(
    spec: features.FeatureSpec, jit_compile: bool, drawn: Path | None
) -> tuple[keras.Model, dict[str, Any]]:
    """Loads a network once a process; the last one only, as a comparison goes over many."""
    path = spec.weights.path
    if path is not None and weights.find(spec.backbone, str(path)).digest != spec.weights.digest:
        raise PapError(f"{path}: a worker sees other weights there than this process")
    policy = device.configure(xla="on" if jit_compile else "off", precision=spec.precision)
    extractor = spec.extractor()
    if drawn is not None:
        extractor.load_weights(drawn)
    extractor.compile(jit_compile=jit_compile)
    return extractor, {"device": policy.device, **features.facts(extractor)}
