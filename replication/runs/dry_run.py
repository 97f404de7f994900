"""What a command would do, how long it would take and what it would write: `--dry_run`.

Nothing is written: images are counted where they lie, speeds are measured for moments on random
pixels and features, weights that would be downloaded are replaced by random ones of the same shape.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from replication.drawing import pages
from replication.learning import features, heads, models, weights
from replication.learning.knobs import HeadRecipe
from replication.runs import automatic, fitting, memory, progress
from replication.runs.device import DevicePolicy
from tfds_pap import copies, folders, phantom_set, pipeline
from tfds_pap.splits import TRAIN, WHOLE

#: Images of the batch whose forward pass is measured on a processor.
_BATCH = 8
#: Bytes of an image's line in predictions.csv.
_PREDICTION_BYTES = 120
#: Bytes of a report with its figures and of TensorBoard's logs of a fit, roughly.
_REPORT_BYTES, _LOG_BYTES = 3e6, 0.2e6


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a data set, counted where they lie.

    Attributes:
        index: Of every image, as `pipeline.read_index` gives it once they are prepared; ids and
            groups of images that are still to be drawn are stand-ins.
        bytes_to_prepare: What TFDS would write; 0 where it has.
    """

    index: pipeline.Index
    bytes_to_prepare: float

    @property
    def train(self) -> int:
        """About how many images train."""
        train = int((self.index.splits == TRAIN).sum())
        return train or round(0.64 * len(self.index.ids))


def images(builder: Any, manual_dir: str | None) -> Images:
    """Counts the images of a builder that need not be prepared.

    Args:
        builder: Of `tfds_pap`.
        manual_dir: Folder of the user's trees, or its URL; None where the images are drawn, or the
            builder knows its own folder.

    Raises:
        folders.TreeError: If the tree cannot be used.
    """
    config = builder.builder_config
    if config.phantom_counts is not None:
        return _drawn(builder)
    listing = getattr(config, "listing", None)
    if manual_dir is None and builder.is_prepared() and listing is None:
        return Images(pipeline.read_index(builder), 0.0)
    if listing is not None:
        tree = folders.check_listing(listing)
    else:
        tree = folders.read_tree(
            copies.folder(manual_dir or "", builder.TREE),
            builder.CLASS_FOLDERS,
            published=builder.PUBLISHED_COUNTS,
        )
    same = builder.is_prepared() and builder.info.metadata.get("fingerprint") == tree.fingerprint
    size = sum(Path(path).stat().st_size for path in {file.path for file in tree.files})
    rows = [(file.id, file.group, file.label, file.split or WHOLE) for file in tree.files]
    return Images(_index(rows, builder.class_names), 0.0 if same else float(size))


def _drawn(builder: Any) -> Images:
    counts, slides = builder.builder_config.phantom_counts, 100
    rows = [
        (f"{split}/{label}/{number}", f"{split} slide {number % slides}", label, split)
        for split, count in counts.items()
        for label in builder.class_names
        for number in range(count)
    ]
    size = 0.0
    if not builder.is_prepared():
        samples = phantom_set.examples(builder.STAGE, next(iter(counts)), per_class=1)
        size = len(rows) * float(
            np.mean([len(phantom_set.encode(pixels)) for *_, pixels in samples])
        )
    return Images(_index(rows, builder.class_names), size)


def _index(rows: list[tuple[str, str, str, str]], class_names: tuple[str, ...]) -> pipeline.Index:
    names = list(class_names)
    ids, groups, labels, splits = zip(*rows, strict=True)
    return pipeline.Index(
        ids=np.array(ids),
        groups=np.array(groups),
        labels=np.array([names.index(label) for label in labels], np.int64),
        splits=np.array(splits),
        class_names=tuple(class_names),
    )


def at_hand(backbone: str, source: str) -> str:
    """Returns `source` of weights, or "none" where they would have to be downloaded.

    Args:
        backbone: See `models.backbone`.
        source: See `weights.find`.
    """
    if source == weights.IMAGENET and not weights.available(backbone, str(weights.cache_dir())):
        return weights.NONE
    return source


def download_bytes(backbone: str, source: str) -> float:
    """Returns the size of the weights that would be downloaded, 0 for none."""
    if at_hand(backbone, source) == source:
        return 0.0
    return 4.0 * (models.backbone(backbone).parameters or 0)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What the features of a backbone cost.

    Attributes:
        seconds: For all images and views, the building of the network included.
        images_per_second: Of the forward pass.
        store: As many random features as there would be.
    """

    seconds: float
    images_per_second: float
    store: features.FeatureStore


def extraction(
    spec: features.FeatureSpec, index: pipeline.Index, policy: DevicePolicy
) -> Extraction:
    """Measures the second forward pass of a few random images.

    Args:
        spec: Which features.
        index: The images.
        policy: Where and how to compute.
    """
    begin = time.perf_counter()
    with policy.sharing.scope():
        extractor = spec.extractor()
    network = features.forward(extractor, policy, len(index.ids) * spec.views, spec.engine)
    random = np.random.default_rng(0)
    count = automatic.inference_batch(accelerated=True) if policy.accelerated else _BATCH
    count *= policy.sharing.devices
    pixels = tf.constant(random.integers(0, 256, (count, spec.size, spec.size, 3), np.uint8))
    np.asarray(network(pixels))
    start = time.perf_counter()
    np.asarray(network(pixels))
    rate = count / (time.perf_counter() - start)
    shape = (len(index.ids), spec.views, extractor.output_shape[-1])
    known = {"weights": "random", "key": {}}
    store = features.FeatureStore(index, random.random(shape, np.float32), known)
    return Extraction(start - begin + shape[0] * shape[1] / rate, rate, store)


def head_seconds(
    store: features.FeatureStore, recipe: HeadRecipe, protocol: str, policy: DevicePolicy
) -> float:
    """Measures a head of one and of six epochs, and returns the seconds of all epochs.

    Args:
        store: Of the features; random ones do.
        recipe: How heads are trained.
        protocol: "paper" or "clean".
        policy: Where and how to compute.
    """
    published = TRAIN in store.index.splits
    fits = None if published else heads.cut(store.index, "image", protocol="", count=5, seed=0)[:1]

    def fit(epochs: int) -> float:
        start = time.perf_counter()
        short = dataclasses.replace(recipe, epochs=epochs)
        heads.train_head(store, short, fits, protocol=protocol, policy=policy)
        return time.perf_counter() - start

    fit(1)
    one, six = fit(1), fit(6)
    epoch = max(six - one, 0.0) / 5
    return max(one - epoch, 0.0) + epoch * recipe.epochs


def fit_bytes(parameters: int, images_scored: int) -> float:
    """Returns about what a fit writes: weights without the optimizer's, predictions, logs."""
    return 4.0 * parameters + _PREDICTION_BYTES * images_scored + _LOG_BYTES


def disk(folder: Path, parts: Mapping[str, float]) -> list[str]:
    """Says how much would be written, and how much is free.

    Args:
        folder: Where results go; need not exist.
        parts: What -> bytes.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    total = sum(parts.values())
    listed = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    lines = [f"Disk: about {size(total)} ({listed}); {size(free)} are free at {place}"]
    if total > free:
        lines.append("That is more than is free: name another place, or free some.")
    return lines


def size(count: float) -> str:
    """Returns bytes in the unit that suits them.

    Example:
        >>> size(3.2e6), size(1.25e9)
        ('3 MB', '1.2 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def report(folder: Path, lines: list[str], parts: Mapping[str, float]) -> None:
    """Prints what would be done, and that nothing was.

    Args:
        folder: Where results would go.
        lines: Fits, epochs and minutes.
        parts: What would be written, in bytes.
    """
    written = {**parts, "report": _REPORT_BYTES}
    print(*lines, *disk(folder, written), sep="\n")
    print(f"--dry_run: nothing was written; without it results go to {folder}")


def about(seconds: float) -> str:
    """Returns seconds as coarse as an estimate is."""
    return pages.duration(5 * max(1, round(seconds / 5)) if seconds < 100 else seconds, digits=0)


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun.

    Example:
        >>> count(1, "fit"), count(1200, "fit")
        ('1 fit', '1,200 fits')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def comparison(
    specs: Mapping[str, features.FeatureSpec],
    index: pipeline.Index,
    *,
    fits: int,
    recipe: HeadRecipe,
    protocol: str,
    policy: DevicePolicy,
    say: Callable[[str], None] = print,
) -> tuple[list[str], dict[str, float]]:
    """Forecasts a comparison of frozen backbones.

    Args:
        specs: The features of each backbone.
        index: The images.
        fits: Heads of each backbone.
        recipe: How heads are trained.
        protocol: "paper" or "clean".
        policy: Where and how to compute.
        say: Gets a line a backbone, as each takes seconds to build.

    Returns:
        Lines, and what would be written in bytes.
    """
    seconds = heads_seconds = stored = written = 0.0
    for name, spec in specs.items():
        measured = extraction(spec, index, policy)
        store = measured.store
        each = head_seconds(store, recipe, protocol, policy)
        seconds += measured.seconds
        heads_seconds += fits * each
        stored += store.features.nbytes
        written += fits * (_PREDICTION_BYTES * len(index.ids) + _LOG_BYTES)
        say(
            f"{name}: {measured.images_per_second:.0f} images/s, features in "
            f"{about(measured.seconds)}; {each:.1f} s a head"
        )
    total = count(fits * len(specs), "fit")
    epochs = f"{fits * len(specs) * recipe.epochs:,}"
    return (
        [
            f"Plan: {count(len(specs), 'backbone')}, {len(index.ids):,} images, {total} of heads, "
            f"at most {epochs} epochs, about {about(seconds + heads_seconds)} on this machine "
            f"(features {about(seconds)}, heads {about(heads_seconds)}; stored features and heads "
            "that are finished cost nothing)"
        ],
        {"features": stored, "fits": written},
    )


def training(
    planned: Mapping[tuple[str, int], Any],
    missing: Sequence[tuple[int, int, str]],
    counted: Mapping[int, Images],
    *,
    policy: DevicePolicy,
    ending: bool,
) -> tuple[list[str], dict[str, float]]:
    """Forecasts a run of both stages.

    Args:
        planned: Recipe of each (protocol, stage).
        missing: (seed, stage, protocol) of each fit.
        counted: Images of each stage.
        policy: Where and how to compute.
        ending: Whether fields are read at the end.

    Returns:
        Lines, and what would be written in bytes.
    """
    fits, seconds, stored, written = [], 0.0, 0.0, 0.0
    measured: dict[Any, tuple[float, float]] = {}
    for seed, stage, protocol in missing:
        recipe, index = planned[protocol, stage], counted[stage].index
        fits.append(
            progress.Fit.of(fitting.label(stage, protocol, seed), recipe, counted[stage].train)
        )
        if recipe.features is None:
            model = recipe.build(recipe.size)
            written += fit_bytes(model.count_params(), len(index.ids))
            continue
        if recipe.features not in measured:
            of_features = extraction(recipe.features, index, policy)
            knobs = HeadRecipe(
                hidden_units=(), epochs=recipe.epochs, batch_size=recipe.batch_size, patience=0
            )
            each = head_seconds(of_features.store, knobs, protocol, policy)
            measured[recipe.features] = (each, of_features.images_per_second)
            seconds += of_features.seconds
            stored += of_features.store.features.nbytes
            parameters = models.backbone(recipe.features.backbone).parameters or 0
        seconds += measured[recipe.features][0]
        # The whole classifier is saved, its backbone without an optimizer.
        written += 4.0 * parameters + fit_bytes(0, len(index.ids))
    alone = [fit for fit in fits if fit.work is not None]
    plan = progress.RunProgress(alone, progress.measure_speed(policy), ending=ending)
    known = plan.seconds is not None or not alone
    total = count(len(fits), "fit")
    epochs = sum(fit.epochs for fit in fits)
    time_of = about(seconds + (plan.seconds or 0.0)) + " on this processor"
    unknown = "minutes show after the first epoch (on a GPU, or another backend than TensorFlow)"
    lines = [
        f"Plan: {total}, at most {epochs:,} epochs, {f'about {time_of}' if known else unknown}"
    ]
    for rate in {rate for _, rate in measured.values()}:
        lines.append(f"Features of the frozen backbone at {rate:.0f} images/s")
    networks = [planned[protocol, stage] for _, stage, protocol in missing]
    networks = [recipe for recipe in networks if recipe.features is None]
    if networks and policy.device.startswith("CPU"):
        images_of = {stage: len(images.index.ids) for stage, images in counted.items()}
        most, pixels = memory.of_training(networks, images_of, policy)
        held = f"{size(pixels)} of images" if pixels else "images are read from a file"
        lines.append(f"Memory: at most about {size(most)} ({held})")
    return lines, {"models": written, "features": stored}
