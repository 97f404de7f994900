"""Images through a frozen network into the chunks of a store.

Images are decoded ahead of the network, and features are fetched and written behind it, in a thread
of its own. One process and each worker of a cluster pass them in this one way.
"""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from tfds_pap import augmentation, files

#: Batches that the device is given before the features of an earlier one are fetched.
_AHEAD = 1


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a store that is written as one file, whole or not at all.

    Attributes:
        path: Of the file.
        rows: Positions of its images in the index, one after the other, int `[m]`.
        ids: Of its images.
    """

    path: Path
    rows: np.ndarray
    ids: np.ndarray


def progress_bar(backbone: str, images: int, views: int) -> tqdm.tqdm:
    """Returns the bar of one backbone's features, each view of an image counted."""
    shown = f"{backbone} features" + (f", {views} views" if views > 1 else "")
    return tqdm.tqdm(desc=shown, total=images * views, unit="image", smoothing=0.1)


def run(
    network: Callable[[tf.Tensor], Any],
    images: tf.data.Dataset,
    chunks: Sequence[Chunk],
    *,
    views: int,
    length: int,
    batch_size: int,
    advance: Callable[[int], Any],
) -> tuple[int, float]:
    """Computes and writes chunks.

    Args:
        network: From `features.forward`.
        images: uint8 `[b, size, size, 3]` of all chunks, one after the other; the last batch may
            be smaller.
        chunks: What is written.
        views: Of each image, see `FeatureSpec.views`.
        length: Of the features of one view.
        batch_size: b.
        advance: Called with the images of each pass.

    Returns:
        Images that passed and the seconds that it took; without the first batch, which pays for
        tracing, where there is another.
    """
    writer = _Writer(chunks, (views, length), advance)
    total = sum(len(chunk.ids) for chunk in chunks)
    # Leaving it waits for what has passed the network, so that Ctrl-C loses none of it.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        on_their_way: collections.deque[concurrent.futures.Future] = collections.deque()
        for number, pixels in enumerate(_turned(images, views, batch_size)):
            begin = time.perf_counter()
            place, view = divmod(number, views)
            features = network(pixels)
            start = place * batch_size
            passed = (features, start, min(batch_size, total - start), view, begin)
            on_their_way.append(thread.submit(writer.take, *passed))
            if len(on_their_way) > _AHEAD:
                on_their_way.popleft().result()
        for remaining in on_their_way:
            remaining.result()
    return writer.measured()


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
        chunks: What is written.
        shape: Views and length of the features of an image.
        advance: Called with the images of each pass.
    """

    def __init__(
        self, chunks: Sequence[Chunk], shape: tuple[int, int], advance: Callable[[int], Any]
    ) -> None:
        self._advance = advance
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        self._features = np.empty((ends[-1], *shape), np.float32)
        self._chunks = collections.deque(zip(chunks, map(int, ends), strict=True))
        self._free_at = self._begun = time.perf_counter()
        self._passed, self._seconds, self._timed = 0, 0.0, 0

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
        if count == len(pooled) and self._passed >= len(pooled):
            self._timed += count
            # Waiting for images is no part of the pass, nor is what the batch before it took.
            self._seconds += now - max(begin, self._free_at)
        self._free_at = now
        self._passed += count
        self._advance(count)
        if view == self._features.shape[1] - 1:
            while self._chunks and self._chunks[0][1] <= start + count:
                chunk, end = self._chunks.popleft()
                _write(chunk, self._features[end - len(chunk.ids) : end])

    def measured(self) -> tuple[int, float]:
        """Images and seconds of the passes alone."""
        if self._seconds:
            return self._timed, self._seconds
        # Of a handful of images there is no batch after the one that pays for tracing.
        return self._passed, time.perf_counter() - self._begun


def _write(chunk: Chunk, features: np.ndarray) -> None:
    with files.replacing(chunk.path) as partial, partial.open("wb") as file:
        np.savez(file, features=features, ids=chunk.ids)
