"""A frozen backbone's pooled features, computed once and kept.

A store is a directory of numbered chunks below the features directory. Its name is a digest of all
that features depend on, so that a changed key is another store, and a chunk that is missing or
damaged is computed again, alone.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds
import tqdm

from replication.learning import models, weights
from replication.runs import automatic, device, engines
from replication.runs.device import DevicePolicy
from tfds_pap import augmentation, files, pipeline
from tfds_pap.errors import PapError

#: Part of the key: raise it where the same inputs would give other features.
CODE_VERSION = 1

#: Where stores lie unless a flag says otherwise.
DIRECTORY = Path("runs") / "features"

#: Images a chunk; at most this many, and those that the device has at hand, are computed again
#: after a kill.
_CHUNK = 128

#: Batches that the device is given before the features of an earlier one are fetched.
_AHEAD = 1


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
        engine: What runs the backbone, one of `engines.ENGINES`.
    """

    backbone: str
    weights: weights.Weights
    size: int
    preprocessing: str
    resize: str = "bilinear"
    views: int = 1
    precision: str = "float32"
    engine: str = "auto"

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
            # Stores of Keras's backends lie where they lay before there was another engine.
            **({"engine": self.engine} if self.engine == "onnx" else {}),
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
        about: What was known when they were computed: key, weights (label), device, engine,
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

    @functools.cached_property
    def on_device(self) -> tf.Tensor:
        """Features of every view of every image, float32 `[n * views, d]`."""
        return tf.reshape(self._views, [-1, self.input_size])

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
    engine: str = "auto",
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
        engine: What runs the backbone, one of `engines.ENGINES`.

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
        engine=engine,
    )


def extract_features(
    builder: tfds.core.DatasetBuilder,
    spec: FeatureSpec,
    directory: Path = DIRECTORY,
    *,
    policy: DevicePolicy | None = None,
    batch_size: int | None = None,
) -> FeatureStore:
    """Returns the features of every image; computes only what is not stored already.

    Args:
        builder: A prepared builder.
        spec: Which features.
        directory: Where all stores lie.
        policy: Where and how to compute; None takes `device.configure`'s defaults.
        batch_size: Images a forward pass; None takes what suits the device.

    Raises:
        PapError: If weights do not fit, or features are not finite.

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
        batch_size = batch_size or automatic.inference_batch(policy.accelerated)
        batch_size *= policy.sharing.devices
        _compute(builder, spec, folder, key, [(n, chunks[n]) for n in missing], policy, batch_size)
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


def forward(
    extractor: keras.Model,
    policy: DevicePolicy,
    images: int,
    engine: str = "auto",
    *,
    kept_in: Path | None = None,
) -> Callable[[tf.Tensor], Any]:
    """Returns the forward pass, which does not wait for the device to finish.

    Args:
        extractor: From `FeatureSpec.extractor`.
        policy: Where and how to compute.
        images: How many will pass, for `DevicePolicy.compiles`.
        engine: One of `engines.ENGINES`; "onnx" waits for each batch.
        kept_in: Where the extractor's form for ONNX Runtime is kept; None keeps none.

    Raises:
        PapError: See `engines.forward`.

    Returns:
        From uint8 `[b, size, size, 3]`, where b never changes, a tensor of TensorFlow or of the
        backend, to features `[b, d]`, as whatever `np.asarray` takes; that alone waits.
    """
    if engines.resolve(engine) == "onnx":
        by_onnx = engines.forward(extractor, engine, kept_in=kept_in, relative=True)
        return lambda pixels: by_onnx(np.asarray(pixels))
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(functools.partial(extractor.stateless_call, training=False))
        state = [
            [variable.value for variable in variables]
            for variables in (extractor.trainable_variables, extractor.non_trainable_variables)
        ]
        # JAX takes no tensor of TensorFlow.
        passed = policy.sharing.forward(lambda pixels: compiled(*state, pixels)[0])
        return lambda pixels: passed(pixels.numpy() if tf.is_tensor(pixels) else pixels)
    return policy.sharing.forward(
        tf.function(
            functools.partial(extractor, training=False),
            jit_compile=policy.compiles(lambda: images * models.gflops(extractor)),
            autograph=False,
        )
    )


def _compute(
    builder: tfds.core.DatasetBuilder,
    spec: FeatureSpec,
    folder: Path,
    key: dict[str, object],
    chunks: list[tuple[int, np.ndarray]],
    policy: DevicePolicy,
    batch_size: int,
) -> None:
    """Decodes ahead of the network, and fetches and writes behind it, in a thread of its own."""
    with policy.sharing.scope():
        extractor = spec.extractor()
    rows = np.concatenate([rows for _, rows in chunks])
    index = pipeline.read_index(builder)
    images = pipeline.image_batches(builder, rows, spec.size, batch_size, spec.resize)
    network = forward(
        extractor, policy, len(rows) * spec.views, spec.engine, kept_in=folder.parent / "onnx"
    )
    shown = f"{spec.backbone} features" + (f", {spec.views} views" if spec.views > 1 else "")
    with tqdm.tqdm(desc=shown, total=len(rows) * spec.views, unit="image", smoothing=0.1) as bar:
        writer = _Writer(folder, chunks, index.ids, (spec.views, extractor.output_shape[-1]), bar)
        # Leaving it waits for what has passed the network, so that Ctrl-C loses none of it.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
            on_their_way: collections.deque[concurrent.futures.Future] = collections.deque()
            for number, pixels in enumerate(_turned(images, spec.views, batch_size)):
                begin = time.perf_counter()
                place, view = divmod(number, spec.views)
                features = network(pixels)
                start = place * batch_size
                passed = (features, start, min(batch_size, len(rows) - start), view, begin)
                on_their_way.append(thread.submit(writer.take, *passed))
                if len(on_their_way) > _AHEAD:
                    on_their_way.popleft().result()
            for remaining in on_their_way:
                remaining.result()
    about = {
        "key": key,
        "weights": spec.weights.label,
        "device": policy.device,
        "engine": engines.resolve(spec.engine),
        "images_per_second": writer.rate(),
        "parameters": extractor.count_params(),
        "gflops": models.gflops(extractor),
        "mebibytes": weights.mebibytes(extractor),
    }
    files.write_json(folder / "about.json", about)


def _turned(images: tf.data.Dataset, views: int, batch_size: int) -> tf.data.Dataset:
    """Each batch in every view, one after the other, filled up to its full size."""

    def turn(pixels: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        count = tf.shape(pixels)[0]
        if views > 1:
            pixels = augmentation.view(pixels, tf.fill([count], view))
        # A last batch of another size would be traced anew, for seconds.
        pixels = tf.pad(pixels, [[0, batch_size - count], [0, 0], [0, 0], [0, 0]])
        return tf.ensure_shape(pixels, (batch_size, *images.element_spec.shape[1:]))

    numbered = images.flat_map(
        lambda pixels: tf.data.Dataset.range(views, output_type=tf.int32).map(
            lambda view: (pixels, view)
        )
    )
    return numbered.map(turn, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


class _Writer:
    """Takes features from the device, in order, and writes each chunk once it is whole.

    Args:
        folder: Of the store.
        chunks: Number and rows of each.
        ids: Of all images.
        shape: Views and length of the features of an image.
        bar: Shows how many images have passed.
    """

    def __init__(
        self,
        folder: Path,
        chunks: list[tuple[int, np.ndarray]],
        ids: np.ndarray,
        shape: tuple[int, int],
        bar: tqdm.tqdm,
    ) -> None:
        self._folder = folder
        self._ids = ids
        self._bar = bar
        self._rows = np.concatenate([rows for _, rows in chunks])
        self._features = np.empty((len(self._rows), *shape), np.float32)
        ends = np.cumsum([len(rows) for _, rows in chunks])
        self._chunks = collections.deque(
            (number, int(end) - len(rows), int(end))
            for (number, rows), end in zip(chunks, ends, strict=True)
        )
        self._free_at = self._begun = time.perf_counter()
        self._seconds, self._measured = 0.0, 0

    def take(self, features: Any, start: int, count: int, view: int, begin: float) -> None:
        """Waits for the features of a batch.

        Args:
            features: `[b, d]`, those of images first.
            start: Of the batch among the images that are missing.
            count: Images of the batch, at most b.
            view: Which view.
            begin: When the batch was handed to the device.
        """
        pooled = np.asarray(features)
        self._features[start : start + count, view] = pooled[:count]
        now = time.perf_counter()
        # The first batch pays for tracing.
        if count == len(pooled) and self._bar.n >= len(pooled):
            self._measured += count
            # Waiting for images is no part of the pass, nor is what the batch before it took.
            self._seconds += now - max(begin, self._free_at)
        self._free_at = now
        self._bar.update(count)
        if view == self._features.shape[1] - 1:
            while self._chunks and self._chunks[0][2] <= start + count:
                number, first, last = self._chunks.popleft()
                ids = self._ids[self._rows[first:last]]
                _write_chunk(_chunk_path(self._folder, number), self._features[first:last], ids)

    def rate(self) -> float:
        """Images a second of the forward pass alone."""
        if self._seconds:
            return self._measured / self._seconds
        # Of a handful of images there is no batch after the one that pays for tracing.
        return self._bar.n / (time.perf_counter() - self._begun)


def _write_chunk(path: Path, features: np.ndarray, ids: np.ndarray) -> None:
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, features=features, ids=ids)
