"""A frozen backbone's pooled features, computed once and kept.

A store is a directory of numbered chunks below the features directory. Its name is a digest of all
that features depend on, so that a changed key is another store, and a chunk that is missing or
damaged is computed again, alone.
"""

import dataclasses
import functools
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds

from replication.learning import feature_pass, folding, models, weights
from replication.runs import automatic, device, engines
from replication.runs.device import DevicePolicy
from tfds_pap import files, pipeline
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

#: Part of the key: raise it where the same inputs would give other features.
CODE_VERSION = 2

#: Where stores lie unless a flag says otherwise.
DIRECTORY = Path("runs") / "features"

#: Images a chunk; at most this many, and those that the device has at hand, are computed again
#: after a kill.
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
    client: "distributed.Client | None" = None,
) -> FeatureStore:
    """Returns the features of every image; computes only what is not stored already.

    Args:
        builder: A prepared builder.
        spec: Which features.
        directory: Where all stores lie.
        policy: Where and how to compute; None takes `device.configure`'s defaults.
        batch_size: Images a forward pass; None takes what suits the device.
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
        batch_size = batch_size or automatic.inference_batch(policy.accelerated)
        todo = [
            feature_pass.Chunk(_chunk_path(folder, n), chunks[n], index.ids[chunks[n]])
            for n in missing
        ]
        if client is None:
            about = _compute(builder, spec, todo, policy, batch_size * policy.sharing.devices)
        else:
            # It computes with what this module has.
            from replication.learning import feature_blocks

            about = feature_blocks.compute(client, builder, spec, todo, policy, batch_size)
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
    network = folding.folded(extractor) if policy.fewer_passes else extractor
    return policy.sharing.forward(
        tf.function(
            functools.partial(network, training=False),
            jit_compile=policy.compiles(lambda: images * models.gflops(extractor)),
            autograph=False,
        )
    )


def _compute(
    builder: tfds.core.DatasetBuilder,
    spec: FeatureSpec,
    chunks: Sequence[feature_pass.Chunk],
    policy: DevicePolicy,
    batch_size: int,
) -> dict[str, Any]:
    """Computes and writes chunks in this process; returns what is known of the computation."""
    with policy.sharing.scope():
        extractor = spec.extractor()
    rows = np.concatenate([chunk.rows for chunk in chunks])
    images = pipeline.image_batches(builder, rows, spec.size, batch_size, spec.resize)
    network = forward(
        extractor, policy, len(rows) * spec.views, spec.engine, kept_in=kept_in(chunks[0].path)
    )
    with feature_pass.progress_bar(spec.backbone, len(rows), spec.views) as bar:
        passed, seconds = feature_pass.run(
            network,
            images,
            chunks,
            views=spec.views,
            length=extractor.output_shape[-1],
            batch_size=batch_size,
            advance=bar.update,
        )
    return {
        "device": policy.device,
        "images_per_second": passed / seconds,
        **facts(spec, extractor),
    }


def kept_in(chunk: Path) -> Path:
    """Returns where forms of networks for ONNX Runtime lie, beside the store of a chunk."""
    return chunk.parent.parent / "onnx"


def facts(spec: FeatureSpec, extractor: keras.Model) -> dict[str, Any]:
    """Returns what computes features: engine, parameters, gflops and mebibytes of the extractor."""
    return {
        "engine": engines.resolve(spec.engine),
        "parameters": extractor.count_params(),
        "gflops": models.gflops(extractor),
        "mebibytes": weights.mebibytes(extractor),
    }
