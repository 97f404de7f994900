"""A frozen backbone's pooled features, computed once and kept.

A store is a directory of numbered chunks below the features directory. Its name is a digest of all
that features depend on, so that a changed key is another store, and a chunk that is missing or
damaged is computed again, alone.
"""

import dataclasses
import functools
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds
import tqdm

from replication.learning import models, weights
from replication.runs import device
from replication.runs.device import DevicePolicy
from tfds_pap import augmentation, files, pipeline
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

#: Part of the key: raise it where the same inputs would give other features.
CODE_VERSION = 1

#: Where stores lie unless a flag says otherwise.
DIRECTORY = Path("runs") / "features"

#: Images a chunk; at most this many are computed again after a kill.
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """All that features depend on beside the images.

    Attributes:
        backbone: See `models.backbone`.
        weights: From `weights.find`.
        size: Height and width of the input in pixels.
        preprocessing: One of `models.PREPROCESSING`.
        resize: One of `decoding.RESIZE_METHODS`.
        views: 1, or 8 to store all flips and quarter-turns of each image.
        precision: Keras dtype policy under which the backbone computes.
    """

    backbone: str
    weights: weights.Weights
    size: int
    preprocessing: str
    resize: str = "bilinear"
    views: int = 1
    precision: str = "float32"

    def key(self, fingerprint: str) -> dict[str, object]:
        """Returns what tells a store from any other.

        Args:
            fingerprint: Of the images.
        """
        return {
            "data": fingerprint,
            "backbone": self.backbone,
            "weights": self.weights.digest,
            "size": self.size,
            "preprocessing": self.preprocessing,
            "resize": self.resize,
            "views": self.views,
            "precision": self.precision,
            "code": CODE_VERSION,
        }

    def extractor(self) -> keras.Model:
        """Builds the model from image to features."""
        network = weights.build(self.backbone, self.weights, self.size)
        return models.feature_extractor(network, self.size, self.preprocessing)


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """Features of every image of a dataset, in the order of its index.

    Attributes:
        index: What is known of each image.
        features: float32 `[n, views, d]`.
        about: What was known when they were computed: key, weights (label), device,
            images_per_second (of the forward pass; one view is one image), parameters, gflops and
            mebibytes of the extractor.
    """

    index: pipeline.Index
    features: np.ndarray
    about: Mapping[str, Any]

    @property
    def input_size(self) -> int:
        """Number of features."""
        return self.features.shape[2]

    # A search makes hundreds of datasets of one store, which share these.
    @functools.cached_property
    def _views(self) -> tf.Tensor:
        return tf.constant(self.features)

    @functools.cached_property
    def _first_view(self) -> tf.Tensor:
        return tf.constant(self.features[:, 0])

    def batches(
        self,
        positions: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: range = range(1),
        augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> tf.data.Dataset:
        """Returns batches of (features, label), in the order that `ImageStore.batches` has.

        Args:
            positions: Which images.
            batch_size: Images a batch.
            seed: Of order and choice of view.
            epochs: Which epochs follow one another.
            augment: `augmentation.random_stored_view`, or None for the images as they are.
        """
        stored = self._views if augment else self._first_view
        return pipeline.ordered_batches(
            lambda chosen: tf.gather(stored, chosen),
            self.index.labels,
            positions,
            batch_size,
            seed=seed,
            epochs=epochs,
            augment=augment,
        )


def feature_spec(
    backbone: str,
    *,
    source: str = "imagenet",
    protocol: str = "clean",
    size: int | None = None,
    resize: str = "bilinear",
    views: int = 1,
    precision: str = "float32",
) -> FeatureSpec:
    """Returns which features a frozen backbone gives; finds its weights.

    Args:
        backbone: See `models.backbone`.
        source: Of its weights: "imagenet", "none", or a path; see `weights.find`.
        protocol: "paper" feeds BGR 0..255 unscaled, as P5 and P6 did; "clean" feeds what the
            weights were trained on.
        size: Height and width of the input in pixels; None takes the backbone's own.
        resize: One of `decoding.RESIZE_METHODS`.
        views: 1, or 8 to store all flips and quarter-turns of each image.
        precision: Keras dtype policy under which the backbone computes.

    Raises:
        PapError: If there is no such backbone, or no such weights.

    Example:
        >>> spec = replication.feature_spec("mobilenetv2_035", source="none", size=32)
        >>> spec.weights.label, spec.preprocessing
        ('untrained', 'tf')
    """
    entry = models.backbone(backbone)
    return FeatureSpec(
        backbone.lower(),
        weights.find(backbone, source),
        size or entry.size,
        entry.preprocessing if protocol == "clean" else "bgr",
        resize=resize,
        views=views,
        precision=precision,
    )


def extract_features(
    builder: tfds.core.DatasetBuilder,
    spec: FeatureSpec,
    directory: Path = DIRECTORY,
    *,
    policy: DevicePolicy | None = None,
    batch_size: int = 32,
    client: "distributed.Client | None" = None,
) -> FeatureStore:
    """Returns the features of every image; computes only what is not stored already.

    Args:
        builder: A prepared builder.
        spec: Which features.
        directory: Where all stores lie.
        policy: Where and how to compute; None takes `device.configure`'s defaults.
        batch_size: Images a forward pass.
        client: From `cluster.connected`, whose workers compute and write the chunks; they must see
            images, weights and `directory` under the same paths. None computes in this process.

    Raises:
        PapError: If weights do not fit, features are not finite, or the cluster is lost.

    Example:
        >>> builder = replication.prepare_images("pap_db4", "original", "drawn", "prepared")
        >>> spec = replication.feature_spec("mobilenetv2_035", source="none", size=32)
        >>> replication.extract_features(builder, spec).features.shape
        (52, 1, 1280)
    """
    policy = policy or device.configure()
    index = pipeline.read_index(builder)
    # The same images in another order are other rows.
    key = {**spec.key(builder.info.metadata["fingerprint"]), "order": index.order}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = directory / f"{spec.backbone}-{name}"
    chunks = [
        np.arange(start, min(start + _CHUNK, len(index.ids)))
        for start in range(0, len(index.ids), _CHUNK)
    ]
    read = [_read_chunk(folder, n, index.ids[rows], spec.views) for n, rows in enumerate(chunks)]
    missing = [number for number, chunk in enumerate(read) if chunk is None]
    if not missing and not (folder / "about.json").exists():
        # The speed of the forward pass is part of a store, and one chunk is enough to measure it.
        missing = [0]
    if missing:
        todo = [(n, chunks[n]) for n in missing]
        if client is None:
            about = _compute(builder, spec, folder, todo, policy, batch_size)
        else:
            # It computes with what this module has.
            from replication.learning import feature_blocks

            about = feature_blocks.compute(
                client,
                builder,
                spec,
                [(_chunk_path(folder, n), rows) for n, rows in todo],
                policy,
                batch_size,
            )
        files.write_json(
            folder / "about.json", {"key": key, "weights": spec.weights.label, **about}
        )
    for number in missing:
        read[number] = _read_chunk(folder, number, index.ids[chunks[number]], spec.views)
    features: np.ndarray = np.concatenate([chunk for chunk in read if chunk is not None])
    wrong = ~np.isfinite(features).all(axis=(1, 2))
    if wrong.any():
        raise PapError(
            f"{spec.backbone} ({spec.weights.label}): {wrong.sum()} of {len(wrong)} images have "
            f"features that are not finite, first {index.ids[wrong.argmax()]}; check the weights"
        )
    return FeatureStore(index, features, files.read_json(folder / "about.json"))


def _chunk_path(folder: Path, number: int) -> Path:
    return folder / f"chunk_{number:05d}.npz"


def _read_chunk(folder: Path, number: int, ids: np.ndarray, views: int) -> np.ndarray | None:
    """Returns the features of these images; None where they are missing.

    A chunk that is damaged, or is of other images, is announced and removed.
    """
    path = _chunk_path(folder, number)
    if not path.exists():
        return None
    try:
        # The zip's own checksums tell a damaged file.
        with np.load(path) as stored:
            features, stored_ids = stored["features"], stored["ids"]
        if features.dtype != np.float32 or features.shape[:2] != (len(ids), views):
            reason = f"holds {features.dtype} {features.shape}"
        elif not np.array_equal(stored_ids, ids):
            reason = "holds features of other images"
        else:
            return features
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"Note: {path.name} of {folder.name} is damaged ({reason}); computing it again")
    path.unlink()
    return None


def _compute(
    builder: tfds.core.DatasetBuilder,
    spec: FeatureSpec,
    folder: Path,
    chunks: list[tuple[int, np.ndarray]],
    policy: DevicePolicy,
    batch_size: int,
) -> dict[str, Any]:
    """Computes and writes chunks in this process; returns what is known of the computation."""
    with policy.scope():
        extractor = spec.extractor()
    extractor.compile(jit_compile=policy.jit_compile)
    images = pipeline.load_images(builder, spec.size, spec.resize)
    total = sum(len(rows) for _, rows in chunks) * spec.views
    measured, seconds = 0, 0.0
    with progress_bar(spec, total) as bar:

        def advance(count: int, spent: float) -> None:
            nonlocal measured, seconds
            # The first batch pays for tracing.
            if count == batch_size and bar.n >= batch_size:
                measured += count
                seconds += spent
            bar.update(count)

        for number, rows in chunks:
            batches = (pixels for pixels, _ in images.batches(rows, batch_size))
            features = chunk_features(extractor, batches, len(rows), spec, batch_size, advance)
            write_chunk(_chunk_path(folder, number), features, images.index.ids[rows])
        # Of a handful of images there is no batch after the one that pays for tracing.
        rate = measured / seconds if seconds else bar.n / bar.format_dict["elapsed"]
    return {"device": policy.device, "images_per_second": rate, **facts(extractor)}


def progress_bar(spec: FeatureSpec, total: int) -> tqdm.tqdm:
    """Returns the bar of one backbone's features, each view of an image counted."""
    shown = f"{spec.backbone} features" + (f", {spec.views} views" if spec.views > 1 else "")
    return tqdm.tqdm(desc=shown, total=total, unit="image", smoothing=0.1)


def chunk_features(
    extractor: keras.Model,
    batches: Iterable[tf.Tensor],
    images: int,
    spec: FeatureSpec,
    batch_size: int,
    advance: Callable[[int, float], None],
) -> np.ndarray:
    """Computes the features of one chunk.

    Args:
        extractor: From `FeatureSpec.extractor`, compiled.
        batches: uint8 `[b, size, size, 3]` each, the last one smaller.
        images: How many in all.
        spec: Which features.
        batch_size: Images a forward pass.
        advance: Called after each pass with the images in it and the seconds that it took.

    Returns:
        float32 `[images, views, d]`.
    """
    features = np.empty((images, spec.views, extractor.output_shape[-1]), np.float32)
    done = 0
    for pixels in batches:
        count = int(pixels.shape[0])
        for view in range(spec.views):
            start = time.perf_counter()
            turned = augmentation.view(pixels, tf.fill([count], view)) if view else pixels
            # A last batch of another size would be traced anew, for seconds.
            turned = tf.pad(turned, [[0, batch_size - count], [0, 0], [0, 0], [0, 0]])
            # JAX takes no tensor of TensorFlow.
            pooled = extractor.predict_on_batch(np.asarray(turned))
            features[done : done + count, view] = pooled[:count]
            advance(count, time.perf_counter() - start)
        done += count
    return features


def facts(extractor: keras.Model) -> dict[str, Any]:
    """Returns parameters, gflops and mebibytes of an extractor."""
    return {
        "parameters": extractor.count_params(),
        "gflops": models.gflops(extractor),
        "mebibytes": weights.mebibytes(extractor),
    }


def write_chunk(path: Path, features: np.ndarray, ids: np.ndarray) -> None:
    """Writes one chunk, whole or not at all."""
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, features=features, ids=ids)
