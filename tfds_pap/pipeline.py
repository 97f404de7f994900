"""From a prepared dataset to batches: decode, resize, cache, shuffle, augment, batch, prefetch.

Every order and every random choice is a function of (seed, epoch), never of how many epochs this
process has already run: a run that was killed goes on with exactly the batches it would have seen.
"""

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets.public_api as tfds

from tfds_pap import files, stored_classes, stored_groups
from tfds_pap.classes import Classes
from tfds_pap.decoding import decode_and_resize
from tfds_pap.errors import PapError

#: Decoded images above this many bytes are kept in a file instead of in memory.
CACHE_BUDGET_BYTES = 4 * 1024**3

_DECODE_BATCH = 32

#: Bytes; TensorFlow shares memory only where it is aligned for vector instructions.
_ALIGNMENT = 64


def examples(
    builder: tfds.core.DatasetBuilder,
    split: str,
    size: int,
    method: str = "bilinear",
) -> tf.data.Dataset:
    """Returns whole examples, in stored order, decoded as they are read: memory is bounded.

    Args:
        builder: A prepared builder.
        split: TFDS split, for example "train" or "train[:10%]".
        size: Height and width in pixels.
        method: One of `decoding.RESIZE_METHODS`.

    Returns:
        Dataset of `{"image": uint8 [size, size, 3], "label": int64 [], "id": string [],
        "group": string []}`.
    """
    return _parsed(builder, split, _decoder(size, method))


def _parsed(
    builder: tfds.core.DatasetBuilder,
    split: str,
    image_decoder: tfds.decode.Decoder,
    wanted: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Examples in stored order; all that reads a builder goes through here and agrees on it.

    Args:
        builder: A prepared builder.
        split: TFDS split.
        image_decoder: Of the image.
        wanted: bool, one for each record; the others are read and not parsed. None wants all.
    """
    features = builder.info.features
    group_of = _renewed_groups(builder)

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = features.deserialize_example(record, decoders={"image": image_decoder})
        return example if group_of is None else example | {"group": group_of.lookup(example["id"])}

    # One map parses and decodes: as_dataset hands every example through four, which cost a third
    # of the decoding itself.
    records = _records(builder, split)
    if wanted is not None:
        chosen = tf.constant(wanted)
        records = records.enumerate().filter(lambda position, _: tf.gather(chosen, position))
        records = records.map(lambda _, record: record)
    return records.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _renewed_groups(builder: tfds.core.DatasetBuilder) -> tf.lookup.StaticHashTable | None:
    """Groups that replaced those in the records, if any did."""
    groups = stored_groups.read(builder)
    if groups is None:
        return None
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(groups), tf.string), tf.constant(list(groups.values()), tf.string)
        ),
        default_value="",
    )


def _records(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """The serialised examples of a TFDS split, file after file."""
    datasets = [
        tf.data.TFRecordDataset(os.fspath(part.filename)).skip(part.skip).take(part.take)
        for part in builder.info.splits[split].file_instructions
    ]
    return functools.reduce(lambda first, second: first.concatenate(second), datasets)


def _decoder(size: int, method: str) -> tfds.decode.Decoder:
    @tfds.decode.make_decoder(output_dtype=tf.uint8)
    def decode_image(data: tf.Tensor, feature: tfds.features.Image) -> tf.Tensor:
        del feature
        return decode_and_resize(data, size, method)

    return decode_image()


@dataclasses.dataclass(frozen=True)
class Index:
    """Id, group, label and split of every image in stored order; nothing is decoded for it.

    Attributes:
        ids: Stable keys.
        groups: Slide, field or patient; "" where unknown.
        labels: int64 `[n]`.
        splits: Published split of each image.
        class_names: Names that the labels index.
        declared: What is known of the classes where their names do not tell it.
    """

    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    declared: Classes | None = None

    @property
    def classes(self) -> Classes:
        """What is known of the classes: declared, or by their names."""
        return self.declared or Classes.known(self.class_names)

    @property
    def order(self) -> str:
        """Digest of the ids in stored order: two builders of one tree may differ in it."""
        return hashlib.sha256("\0".join(self.ids.tolist()).encode()).hexdigest()


def read_index(builder: tfds.core.DatasetBuilder) -> Index:
    """Reads ids, groups and labels of every split of a prepared builder.

    Raises:
        PapError: If a file of records is damaged.
    """
    columns: dict[str, list] = {"id": [], "group": [], "label": [], "split": []}
    for split in sorted(builder.info.splits):
        for example in _stored(builder, split):
            columns["id"].append(example["id"].decode())
            columns["group"].append(example["group"].decode())
            columns["label"].append(example["label"])
            columns["split"].append(split)
    return Index(
        ids=np.array(columns["id"]),
        groups=np.array(columns["group"]),
        labels=np.array(columns["label"], np.int64),
        splits=np.array(columns["split"]),
        class_names=tuple(builder.info.features["label"].names),
        declared=stored_classes.read(builder),
    )


def load_part(
    builder: tfds.core.DatasetBuilder, start: int, stop: int, size: int, method: str = "bilinear"
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes some images that follow one another in the index; the others are not read.

    Args:
        builder: A prepared builder.
        start: Position of the first in `read_index`.
        stop: Position behind the last.
        size: Height and width in pixels.
        method: One of `decoding.RESIZE_METHODS`.

    Returns:
        Ids `[n]`, and uint8 `[n, size, size, 3]` as in `load_images`.
    """
    ids, pixels, first = [], [], 0
    for split in sorted(builder.info.splits):
        count = builder.info.splits[split].num_examples
        low, high = max(start - first, 0), min(stop - first, count)
        first += count
        if low < high:
            part = examples(builder, f"{split}[{low}:{high}]", size, method)
            for example in part.as_numpy_iterator():
                ids.append(example["id"].decode())
                pixels.append(example["image"])
    return np.array(ids), np.stack(pixels)


def read_files(builder: tfds.core.DatasetBuilder, ids: Sequence[str]) -> list[bytes]:
    """Returns the stored bytes of a few named images, JPEG, PNG or BMP, in the order of the ids.

    Args:
        builder: A prepared builder.
        ids: Which images.

    Raises:
        KeyError: If there is no such image.
    """
    wanted = set(ids)
    files_by_id = {id_: data for id_, data in stored_files(builder) if id_ in wanted}
    return [files_by_id[id_] for id_ in ids]


def stored_files(builder: tfds.core.DatasetBuilder) -> Iterator[tuple[str, bytes]]:
    """Yields id and stored bytes, JPEG, PNG or BMP, of every image of a prepared builder."""
    for split in sorted(builder.info.splits):
        for example in _stored(builder, split):
            yield example["id"].decode(), example["image"]


def _stored(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split, undecoded.

    Raises:
        PapError: If one is damaged (TFRecord's checksums tell), or some are missing.
    """
    count, expected = 0, builder.info.splits[split].num_examples
    try:
        for example in _parsed(builder, split, tfds.decode.SkipDecoding()).as_numpy_iterator():
            count += 1
            yield example
        # A file that ends between two records is no error to TensorFlow.
        why = "" if count == expected else f"{count} of {expected} images are there"
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as e:
        why = re.sub(r"\{\{.*?\}\}| \[Op:.*", "", " ".join(str(e.message).split()))[:100].strip()
    if why:
        raise PapError(
            f"{builder.data_dir}: the prepared images of {split} are damaged ({why}); delete that "
            "folder, and they are prepared again"
        )


def read_images(
    builder: tfds.core.DatasetBuilder, ids: Sequence[str], size: int, method: str = "bilinear"
) -> list[np.ndarray]:
    """Decodes a few named images.

    Args:
        builder: A prepared builder.
        ids: Which images; the result has their order.
        size: Height and width in pixels.
        method: One of `decoding.RESIZE_METHODS`.

    Returns:
        uint8 RGB `[size, size, 3]` each.

    Raises:
        KeyError: If there is no such image.
    """
    return [decode_and_resize(data, size, method).numpy() for data in read_files(builder, ids)]


@dataclasses.dataclass(frozen=True)
class ImageStore:
    """Every decoded image of a dataset, in the order of its `Index`.

    Attributes:
        index: Id, group, label and split of each image.
        pixels: uint8 `[n, size, size, 3]`; a tensor in memory, or an array mapped from a file.
    """

    index: Index
    pixels: tf.Tensor | np.memmap

    @property
    def input_size(self) -> int:
        """Height and width in pixels."""
        return self.pixels.shape[1]

    @functools.cached_property
    def on_device(self) -> tf.Variable:
        """The pixels on TensorFlow's first device; all fits of a process share them."""
        return tf.Variable(self.pixels, trainable=False)

    def images(self, ids: Sequence[str]) -> list[np.ndarray]:
        """Returns the uint8 pixels `[size, size, 3]` of the named images, in the order of the ids.

        Raises:
            KeyError: If there is no such image.
        """
        position = {id_: number for number, id_ in enumerate(self.index.ids)}
        return [np.asarray(self.pixels[position[id_]]) for id_ in ids]

    def batches(
        self,
        positions: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: range = range(1),
        augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> tf.data.Dataset:
        """Returns batches of (uint8 image, int64 label).

        Args:
            positions: Which images, as positions in the index.
            batch_size: Images a batch; the last batch of an epoch may be smaller.
            seed: Orders every epoch by (seed, epoch); None keeps the order of the positions.
            epochs: Which epochs follow one another; a resumed run starts where it was killed.
            augment: Called with uint8 images `[b, size, size, 3]` and an int32 seed `[2]` that
                depends on (seed, epoch, batch) alone; returns the images in the same shape.
        """
        return ordered_batches(
            self._gather(),
            self.index.labels,
            positions,
            batch_size,
            seed=seed,
            epochs=epochs,
            augment=augment,
        )

    def _gather(self) -> Callable[[tf.Tensor], tf.Tensor]:
        if isinstance(self.pixels, np.memmap):
            shape = (None, *self.pixels.shape[1:])

            def gather_from_file(chosen: tf.Tensor) -> tf.Tensor:
                images = tf.numpy_function(
                    lambda rows: np.asarray(self.pixels[rows]), [chosen], tf.uint8
                )
                return tf.ensure_shape(images, shape)

            return gather_from_file
        return lambda chosen: tf.gather(self.pixels, chosen)


def ordered_batches(
    gather: Callable[[tf.Tensor], tf.Tensor],
    labels: np.ndarray,
    positions: np.ndarray,
    batch_size: int,
    *,
    seed: int | None = None,
    epochs: range = range(1),
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Returns batches whose order and random changes are a function of (seed, epoch, batch).

    Args:
        gather: From positions, int64 `[b]`, to what the model is fed.
        labels: int64 `[n]`.
        positions: Which examples, int64 `[m]`, positions in `labels`.
        batch_size: Examples a batch; the last batch of an epoch may be smaller.
        seed: Of order and augmentation; None keeps the order of the positions.
        epochs: Which epochs follow one another; a resumed run starts where it was killed.
        augment: Called with what `gather` returns and an int32 seed `[2]`.
    """
    unshuffled = tf.constant(np.asarray(positions, np.int64))
    labels = tf.constant(labels)
    # Distinct streams for order and augmentation come from one seed.
    order_seed, augment_seed = (2 * (seed or 0), 2 * (seed or 0) + 1)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = unshuffled
        if seed is not None:
            key = tf.stack([order_seed, tf.cast(epoch, tf.int32)])
            order = tf.random.experimental.stateless_shuffle(order, key)
        batched = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        return batched.enumerate().map(lambda batch, chosen: (epoch, batch, chosen))

    def load(epoch: tf.Tensor, batch: tf.Tensor, chosen: tf.Tensor) -> tuple:
        images = gather(chosen)
        if augment is not None:
            step = tf.stack([augment_seed, tf.cast(epoch, tf.int32)])
            step = tf.random.experimental.stateless_fold_in(step, tf.cast(batch, tf.int32))
            images = augment(images, step)
        return images, tf.gather(labels, chosen)

    steps = len(epochs) * math.ceil(len(positions) / batch_size)
    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(one_epoch)
    # Keras warns of running out of data where it cannot know the length.
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def image_batches(
    builder: tfds.core.DatasetBuilder,
    positions: np.ndarray,
    size: int,
    batch_size: int,
    method: str = "bilinear",
) -> tf.data.Dataset:
    """Returns batches of some images, decoded as they are read: memory is bounded.

    Args:
        builder: A prepared builder.
        positions: Which images, positions in its index, rising.
        size: Height and width in pixels.
        batch_size: Images a batch; the last one may be smaller.
        method: One of `decoding.RESIZE_METHODS`.

    Returns:
        Dataset of uint8 `[b, size, size, 3]`, in stored order.
    """
    decoder, parts, first = _decoder(size, method), [], 0
    for split in sorted(builder.info.splits):
        stop = first + builder.info.splits[split].num_examples
        wanted = np.isin(np.arange(first, stop), positions)
        parts.append(_parsed(builder, split, decoder, wanted).map(lambda example: example["image"]))
        first = stop
    images = functools.reduce(lambda before, after: before.concatenate(after), parts)
    return images.batch(batch_size).prefetch(2)


def load_images(
    builder: tfds.core.DatasetBuilder,
    size: int,
    method: str = "bilinear",
    *,
    budget_bytes: int = CACHE_BUDGET_BYTES,
    cache_dir: str | os.PathLike | None = None,
) -> ImageStore:
    """Decodes every image of a prepared builder once.

    Args:
        builder: A prepared builder.
        size: Height and width in pixels.
        method: One of `decoding.RESIZE_METHODS`.
        budget_bytes: Above this the pixels go to a file that later runs use again.
        cache_dir: Where that file lies; None takes the builder's own data directory.
    """
    index = read_index(builder)
    shape = (len(index.ids), size, size, 3)
    if np.prod(shape, dtype=np.int64) <= budget_bytes:
        pixels = _empty_aligned(shape)
        _decode_all(builder, size, method, pixels)
        # Shares the memory: a copy would double what a run needs.
        return ImageStore(index, tf.experimental.dlpack.from_dlpack(pixels.__dlpack__()))
    folder = Path(cache_dir or builder.data_dir)
    key = f"{builder.info.metadata['fingerprint']} {index.order} {shape} {method}"
    path = folder / f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    kept = path.with_suffix(".sha256")
    if path.exists() and not (kept.exists() and kept.read_text("utf-8") == files.sha256(path)):
        print(f"Note: {path} is damaged; decoding the images again")
        path.unlink()
    if not path.exists():
        with files.replacing(path) as partial:
            pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            _decode_all(builder, size, method, pixels)
            pixels.flush()
            files.write_atomically(kept, files.sha256(partial))
    return ImageStore(index, np.lib.format.open_memmap(path, "r"))


def _empty_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for uint8 values that starts where TensorFlow wants it."""
    count = math.prod(shape)
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + count].reshape(shape)


def _decode_all(
    builder: tfds.core.DatasetBuilder, size: int, method: str, pixels: np.ndarray
) -> None:
    start = 0
    for split in sorted(builder.info.splits):
        dataset = examples(builder, split, size, method).map(lambda example: example["image"])
        for batch in dataset.batch(_DECODE_BATCH).prefetch(2).as_numpy_iterator():
            pixels[start : start + len(batch)] = batch
            start += len(batch)
