"""What `accelerator.py` measures: each part is a generator of rows, in terms of this package."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from replication.learning import (
    features,
    heads,
    knobs,
    models,
    recipes,
    training,
    training_state,
    weights,
)
from replication.runs import automatic
from replication.runs.device import DevicePolicy
from tfds_pap import pipeline, preparing, roles


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        backbones: Which backbones.
        images: Of stage 2, drawn.
        backbone: Input of the backbones in pixels.
        stage2: Input of the stage-2 CNN in pixels.
        tuned: Images that fine-tuning trains on, in batches of `batch`.
        batch: See `tuned`.
        head_epochs: Of the head.
        field: Width and height of the field in pixels.
        seconds: Least time of a bare forward pass.
    """

    backbones: tuple[str, ...]
    images: int
    backbone: int
    stage2: int
    tuned: int
    batch: int
    head_epochs: int
    field: tuple[int, int]
    seconds: float


ON_ACCELERATOR = Sizes(
    ("resnet50", "resnet152"), 2048, 224, models.STAGE2_SIZE, 1024, 64, 30, (2048, 1536), 3.0
)
#: Two cores compute a hundredth of it: these show that every part works, and compare ways.
ON_PROCESSOR = Sizes(("mobilenetv2_035", "resnet50"), 384, 64, 190, 32, 8, 10, (1024, 768), 1.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        part: What was measured.
        images: How many.
        size: Their side in pixels; 0 for stored features.
        batch: Images a step.
        start: Seconds until the first step was done: building, tracing, compiling.
        rate: Images a second after it; None where the part was skipped.
        gflops: Of one image.
        backbone: Whose bare rate the rate is a share of; "" for none.
        note: Why it was skipped, or what is unlike the others.
    """

    part: str
    images: int = 0
    size: int = 0
    batch: int = 0
    start: float = 0.0
    rate: float | None = None
    gflops: float = 0.0
    backbone: str = ""
    note: str = ""


class _Clock(keras.callbacks.Callback):
    """Notes when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = [time.perf_counter()]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())

    def row(self, part: str, images: int, **others: Any) -> Row:
        """The first epoch apart from those after it."""
        first, later = self.ends[1] - self.ends[0], self.ends[-1] - self.ends[1]
        return Row(part, images, start=first, rate=images * (len(self.ends) - 2) / later, **others)


def input_pipeline(builder: Any, sizes: Sizes, policy: DevicePolicy) -> Iterator[Row]:
    """Decoding and resizing alone, for the backbones."""
    batch = automatic.inference_batch(policy.accelerated)
    start = time.perf_counter()
    images = pipeline.image_batches(builder, np.arange(sizes.images), sizes.backbone, batch)
    counts, ends = [], []
    for pixels in images:
        counts.append(len(pixels))
        ends.append(time.perf_counter())
    rate = sum(counts[1:]) / (ends[-1] - ends[0])
    yield Row(
        "input pipeline", sizes.images, sizes.backbone, batch, start=ends[0] - start, rate=rate
    )


def forward(name: str, sizes: Sizes, policy: DevicePolicy) -> Iterator[Row]:
    """The bare forward pass of a backbone: one batch, already on the device, again and again."""
    batch = automatic.inference_batch(policy.accelerated)
    start = time.perf_counter()
    extractor = _spec(name, sizes, policy).extractor()
    network = features.forward(extractor, policy, sizes.images)
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch, sizes.backbone, sizes.backbone, 3), np.uint8
    )
    placed = keras.ops.convert_to_tensor(pixels)
    np.asarray(network(placed))
    begin = time.perf_counter()
    passes = 0
    while not passes or time.perf_counter() - begin < sizes.seconds:
        # Several on their way at a time, as features are computed.
        passed = [network(placed) for _ in range(4)]
        np.asarray(passed[-1])
        passes += len(passed)
    rate = passes * batch / (time.perf_counter() - begin)
    gflops = models.gflops(extractor)
    yield Row(
        f"bare forward, {name}", passes * batch, sizes.backbone, batch, begin - start, rate, gflops,
        name,
    )  # fmt: skip


def stored_features(
    name: str, builder: Any, sizes: Sizes, policy: DevicePolicy, place: Path
) -> Iterator[Row]:
    """Features through the pipeline into a store: from its first chunk to its last."""
    batch = automatic.inference_batch(policy.accelerated)
    # Of nanoseconds since 1970, as files have them.
    start = time.time()
    store = features.extract_features(builder, _spec(name, sizes, policy), place, policy=policy)
    chunks = sorted(place.glob(f"{name}-*/chunk_*.npz"))
    written = [path.stat().st_mtime_ns / 1e9 for path in chunks]
    with np.load(chunks[0]) as first:
        later = len(store.features) - len(first["ids"])
    yield Row(
        f"features through the pipeline, {name}", len(store.features), sizes.backbone, batch,
        written[0] - start, later / (written[-1] - written[0]), store.about["gflops"], name,
    )  # fmt: skip


def head(builder: Any, sizes: Sizes, policy: DevicePolicy, place: Path) -> Iterator[Row]:
    """The head of P6 on stored features; its second seed, as the first one warms the process."""
    store = features.extract_features(
        builder, _spec(sizes.backbones[0], sizes, policy), place, policy=policy
    )
    recipe = dataclasses.replace(knobs.HeadRecipe(), epochs=sizes.head_epochs, patience=0)
    assigned = heads.cut(store.index, heads.PUBLISHED, protocol="clean", count=0, seed=0)
    seconds = []
    for seed in range(2):
        start = time.perf_counter()
        heads.train_head(store, recipe, assigned, seed=seed, policy=policy)
        seconds.append(time.perf_counter() - start)
    images = len(assigned[0].train) * sizes.head_epochs
    yield Row(
        "head fit, a seed", images, 0, recipe.batch_size, seconds[0], images / seconds[1],
        note=f"{seconds[1]:.1f} s for {sizes.head_epochs} epochs, scoring included",
    )  # fmt: skip


def stage2(builder: Any, sizes: Sizes, policy: DevicePolicy, place: Path) -> Iterator[Row]:
    """A fit of the stage-2 CNN as `pap run` makes it, of three epochs."""
    recipe = dataclasses.replace(recipes.RECIPES["clean", 2], size=sizes.stage2, epochs=3)
    images = pipeline.load_images(builder, recipe.size)
    assigned = roles.assign_roles(images.index, "clean", stage=2)
    gflops = models.training_gflops(recipe.build(recipe.size))
    yield _fitted("stage-2 CNN fit", recipe, images, assigned, policy, place, gflops)


def fine_tuning(
    name: str, builder: Any, sizes: Sizes, policy: DevicePolicy, place: Path
) -> Iterator[Row]:
    """A backbone trained end to end, with XLA and without."""
    images = pipeline.load_images(builder, sizes.backbone)
    train = np.arange(sizes.tuned)
    assigned = roles.Roles(train, train[:0], train[:0])
    classes = len(images.index.class_names)

    def build(size: int) -> keras.Model:
        extractor = _spec(name, sizes, policy).extractor()
        # The model counts as trainable already: by TensorFlow its own setter does nothing.
        for layer in extractor.layers:
            layer.trainable = True
        return models.classifier(extractor, models.linear_head(extractor.output_shape[-1], classes))

    recipe = dataclasses.replace(
        recipes.RECIPES["clean", 2], name=name, size=sizes.backbone, build=build, epochs=3,
        batch_size=sizes.batch, optimizer="sgd", learning_rate=1e-4, keep="last", patience=0,
    )  # fmt: skip
    gflops = models.training_gflops(build(sizes.backbone))
    ways = {"XLA off": dataclasses.replace(policy, jit_compile=False)}
    compiled = dataclasses.replace(policy, jit_compile=True, compiled_from=0.0)
    if keras.backend.backend() == "jax":
        ways = {"XLA on": compiled}
    elif policy.accelerated:
        ways["XLA on"] = compiled
    else:
        yield Row(f"fine-tuning, {name}, XLA on", note="skipped: a CPU compiles for minutes")
    for way, chosen in ways.items():
        part = f"fine-tuning, {name}, {way}"
        yield _fitted(part, recipe, images, assigned, chosen, place / way[4:], gflops)


def pytorch(name: str, sizes: Sizes, policy: DevicePolicy) -> Iterator[Row]:
    """The same by PyTorch."""
    import accelerator_torch

    batch = automatic.inference_batch(policy.accelerated)
    gflops = models.gflops(_spec(name, sizes, policy).extractor())
    ways = accelerator_torch.rates(name, sizes.backbone, batch, sizes.seconds)
    for way, start, rate in ways:
        yield Row(
            f"PyTorch with torch.compile, {way}, {name}", size=sizes.backbone, batch=batch,
            start=start, rate=rate, gflops=gflops * (1 if way == "forward" else 3), backbone=name,
        )  # fmt: skip


def scan(sizes: Sizes) -> Iterator[Row]:
    """Both stages on one drawn field, random weights; an image is an ROI here."""
    from replication.fields.find import scanner
    from replication.fields.find.dense import Stage1
    from replication.fields.find.stages import Stage2, Stages
    from replication.fields.read.field import ArrayField
    from replication.measures import decisions
    from tfds_pap import phantom, taxonomy

    width, height = sizes.field
    pixels, *_ = phantom.draw_field(0, width=width, height=height, cells=width * height // 20_000)
    decision = decisions.Decision(taxonomy.STAGE2_CLASSES, None, None)
    stages = Stages(
        Stage1(models.stage1_cnn(), "bilinear"),
        Stage2(models.stage2_cnn("clean"), "bilinear", decision),
        {},
    )
    seconds = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            start = time.perf_counter()
            # The best percent of the ROIs, as random weights score them all alike.
            threshold = float(np.quantile(stages.stage1.scores(pixels), 0.99))
            field = ArrayField("drawn", pixels)
            found = scanner.scan(field, stages, threshold=threshold, radius=50, pool=pool)
            seconds.append(time.perf_counter() - start)
    rois = found.lattice.rois
    yield Row(
        "scan of a field", rois, 150, 0, seconds[0], rois / seconds[1],
        note=f"{width} x {height} px, {len(found.cells)} cells named; stage 1 twice",
    )  # fmt: skip


def _spec(name: str, sizes: Sizes, policy: DevicePolicy) -> features.FeatureSpec:
    return features.FeatureSpec(
        name, weights.find(name, weights.NONE), sizes.backbone, "caffe", precision=policy.precision
    )


def _fitted(
    part: str,
    recipe: training.Recipe,
    images: pipeline.ImageStore,
    assigned: roles.Roles,
    policy: DevicePolicy,
    place: Path,
    gflops: float,
) -> Row:
    clock = _Clock()
    _, outcome = training.fit(
        recipe, images, assigned, seed=0, policy=policy, directory=place, label=None,
        callbacks=(clock,),
    )  # fmt: skip
    training_state.remove_state(place)
    name = recipe.name if recipe.name in models.BACKBONES else ""
    return clock.row(
        part, len(assigned.train), size=recipe.size, batch=recipe.batch_size, gflops=gflops,
        backbone=name,
        note=f"XLA {'on' if outcome['xla'] else 'off'}, {outcome['steps_per_execution']} steps a "
        "call",
    )  # fmt: skip


def prepared(sizes: Sizes, place: Path) -> Any:
    """Draws the images and prepares them."""
    from tfds_pap import phantom_set

    validation = sizes.images // 16
    counts = {"train": sizes.images // 4 - validation, "validation": validation}
    phantom_set.write_tree(place, db3={}, db4=counts)
    return preparing.prepare("pap_db4", "original", place, place / "tfds")
