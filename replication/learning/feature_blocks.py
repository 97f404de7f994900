"""The chunks of a feature store, computed by the workers of a cluster.

A worker computes a chunk just as one process does (`feature_pass`): the same batches of the same
size, the same network, the same file. What is left that could differ is the number of threads: the
forward passes of MobileNetV2, ResNet50, EfficientNetB0 and VGG16 had the same bytes with one thread
as with two (float32, processors with AVX-512), but TensorFlow promises that nowhere.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds

from replication.learning import feature_pass, features, weights
from replication.runs import device
from replication.runs.device import DevicePolicy
from tfds_pap import cluster, files, pipeline, preparing
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all chunks of a store share."""

    data_dir: str
    spec: features.FeatureSpec
    batch_size: int
    images: int
    xla: str
    #: The network's weights where no file has them.
    drawn: Path | None


def compute(
    client: "distributed.Client",
    builder: tfds.core.DatasetBuilder,
    spec: features.FeatureSpec,
    chunks: Sequence[feature_pass.Chunk],
    policy: DevicePolicy,
    batch_size: int,
) -> dict[str, Any]:
    """Has workers compute and write chunks.

    Args:
        client: From `cluster.connected`.
        builder: A prepared builder, whose files workers see under the same path.
        spec: Which features; workers see its weights under the same path.
        chunks: Under paths that workers see as well.
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
        drawn = chunks[0].path.absolute().with_name("untrained.weights.h5")
        with files.replacing(drawn, ".weights.h5") as partial:
            spec.extractor().save_weights(partial)
    images = sum(len(chunk.ids) for chunk in chunks)
    # A worker asks its own devices, as work of this size.
    xla = {"on": "on", "off": "off"}.get(policy.xla, "auto")
    work = _Work(data_dir, spec, batch_size, images, xla, drawn)
    blocks = [(work, dataclasses.replace(chunk, path=chunk.path.absolute())) for chunk in chunks]
    passed, seconds, about = 0, 0.0, dict[str, Any]()
    with (
        feature_pass.progress_bar(spec.backbone, images, spec.views) as bar,
        contextlib.closing(cluster.outcomes(client, _compute_one, blocks)) as done,
    ):
        for number, (count, spent, told) in done:
            passed, seconds, about = passed + count, seconds + spent, told
            bar.update(len(chunks[number].ids) * spec.views)
    if drawn is not None:
        drawn.unlink()
    return {**about, "images_per_second": passed / seconds}


def _compute_one(work: _Work, chunk: feature_pass.Chunk) -> tuple[int, float, dict[str, Any]]:
    """Runs in a worker; returns images and seconds of the passes, and facts of the network."""
    network, about = _network(work, features.kept_in(chunk.path))
    stored, pixels = pipeline.load_part(
        preparing.open_prepared(work.data_dir),
        int(chunk.rows[0]),
        int(chunk.rows[-1]) + 1,
        work.spec.size,
        work.spec.resize,
    )
    if not np.array_equal(stored, chunk.ids):
        raise PapError(f"{work.data_dir}: a worker sees other images there than this process")
    passed, seconds = feature_pass.run(
        network,
        tf.data.Dataset.from_tensor_slices(pixels).batch(work.batch_size),
        [chunk],
        views=work.spec.views,
        length=about["features"],
        batch_size=work.batch_size,
        advance=lambda count: None,
    )
    return passed, seconds, {key: value for key, value in about.items() if key != "features"}


@functools.lru_cache(maxsize=1)
def _network(work: _Work, kept_in: Path) -> tuple[Callable[[tf.Tensor], Any], dict[str, Any]]:
    """Loads a network once a process; the last one only, as a comparison goes over many."""
    spec, path = work.spec, work.spec.weights.path
    if path is not None and weights.find(spec.backbone, str(path)).digest != spec.weights.digest:
        raise PapError(f"{path}: a worker sees other weights there than this process")
    policy = device.configure(xla=work.xla, precision=spec.precision)
    extractor = spec.extractor()
    if work.drawn is not None:
        extractor.load_weights(work.drawn)
    network = features.forward(
        extractor, policy, work.images * spec.views, spec.engine, kept_in=kept_in
    )
    about = {"device": policy.device, **features.facts(spec, extractor)}
    return network, {**about, "features": extractor.output_shape[-1]}
