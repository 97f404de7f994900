"""How long each step takes, from steps of training and forward passes that are measured before.

It imports TensorFlow and builds every network, so that it runs in a process of its own.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from replication.fields.read import reader
from replication.learning import features, recipes, training
from replication.learning.knobs import HeadRecipe
from replication.runs import device, dry_run
from replication.runs.device import DevicePolicy
from replication.runs.sources import Sources
from replication.whole_paper.budget import Cost
from replication.whole_paper.plan import PROTOCOLS, Settings
from tfds_pap import near_duplicates, phantom
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Seconds that are not measured before: what a process of each step needs to start, to look at its
#: images and to write its report, as it was on an AMD EPYC with two cores.
_START = {"audit": 20.0, "scan": 45.0, "export": 45.0}
#: The export traces the whole network: a ResNet152, on a Xeon with two cores.
_EXPORT = {"resnet152": 240.0}
_OTHER_START = 30.0
#: Drawn cells that are audited to see what one takes. Each takes as much again for so many more,
#: up to so many: 26, 45 and 73 ms of 100, 2,000 and 4,800 drawn images on a Xeon with two cores.
_AUDITED, _AS_MUCH_AGAIN, _MOST_COUNTED = 100, 2_700, 5_000
#: Of a whole field, beside the forward passes of its cells.
_FIELD_SECONDS = 8.0
#: P4's heads and the epochs of P4 and P6; P5's grid and epochs.
_HEADS, _HEAD_EPOCHS, _GRID, _TRIAL_EPOCHS = 3, 50, 162, 30
#: Of `pap defects`: seeds, P5's points, other heads of a seed (two feeds, four a fold of D6), and
#: the pixels of drawn images.
_DEFECT_SEEDS, _DEFECT_POINTS, _DEFECT_HEADS, _DEFECT_SIZE = 2, 18, 2 + 4 * 5, 96
#: P6's input in pixels.
_FINAL_SIZE = 250
_FIELDS = 3


@dataclasses.dataclass
class _Measured:
    """What is measured once and used by several steps."""

    settings: Settings
    policy: DevicePolicy
    images: dict[int, dry_run.Images]
    extractions: dict[tuple[str, int, int, str], dry_run.Extraction] = dataclasses.field(
        default_factory=dict
    )
    #: Features that an earlier step of the plan leaves to a later one.
    counted: set[tuple[str, int, str, str]] = dataclasses.field(default_factory=set)

    #: Stages that an earlier step of the plan has audited.
    audited: set[int] = dataclasses.field(default_factory=set)
    heads: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    def extraction(
        self, backbone: str, size: int | None = None, views: int = 1, engine: str = "auto"
    ) -> dry_run.Extraction:
        """What the features of a backbone cost."""
        spec = features.feature_spec(backbone, source="none", size=size, views=views, engine=engine)
        key = (backbone, spec.size, views, engine)
        if key not in self.extractions:
            self.extractions[key] = dry_run.extraction(spec, self.images[2].index, self.policy)
        return self.extractions[key]

    def head(self, backbone: str, batch_size: int) -> float:
        """Seconds of a head of 50 epochs; neither protocol nor the size of images changes it."""
        key = (backbone, batch_size)
        if key not in self.heads:
            recipe = HeadRecipe(epochs=_HEAD_EPOCHS, batch_size=batch_size, patience=0)
            store = self.extraction(backbone, engine=self.settings.engine).store
            self.heads[key] = dry_run.head_seconds(store, recipe, "clean", self.policy)
        return self.heads[key]

    def new_features(
        self, backbone: str, protocol: str, size: int | None = None, engine: str = "auto"
    ) -> float:
        """Seconds of features that no step before has stored; another size goes by its area."""
        key = (backbone, size or 0, protocol, engine)
        if key in self.counted:
            return 0.0
        self.counted.add(key)
        usual = features.feature_spec(backbone, source="none").size
        measured = self.extraction(backbone, engine=engine)
        return measured.seconds * ((size or usual) / usual) ** 2

    def new_audits(self, *stages: int) -> float:
        """Seconds of looking at the stages that no step before has looked at."""
        counts = [len(self.images[stage].index.ids) for stage in {*stages} - self.audited]
        self.audited.update(stages)
        if not counts:
            return 0.0
        an_image = _audited_seconds(self.settings.audit)
        return sum(
            an_image * count * (1 + min(count, _MOST_COUNTED) / _AS_MUCH_AGAIN) for count in counts
        )


def measure(
    settings: Settings, names: Sequence[str], flags: tuple[str, str, bool]
) -> dict[str, Cost]:
    """Measures what steps need.

    Args:
        settings: What they have in common.
        names: Of the steps, in their order.
        flags: --xla, --precision and --deterministic.

    Returns:
        The cost of each step in full.
    """
    xla, precision, deterministic = flags
    policy = device.configure(xla=xla, precision=precision, deterministic=deterministic)
    source = "original" if settings.manual_dir else "phantom"
    sources = Sources(source, manual_dir=settings.manual_dir, data_dir=settings.data_dir)
    images = {
        stage: dry_run.images(sources.builder(stage), settings.manual_dir) for stage in (1, 2)
    }
    known = _Measured(settings, policy, images)
    return {name: _cost(name, known) for name in names}


def _cost(name: str, known: _Measured) -> Cost:
    part, _, ending = name.partition("-")
    if part == "audit":
        return Cost(_START[part] + known.new_audits(1, 2))
    if part == "scan":
        place = known.settings.fields
        fields = len(reader.expand_fields([place])) if place else _FIELDS
        return Cost(_START[part] + _FIELD_SECONDS * fields, measured=False)
    if part == "export":
        return Cost(_EXPORT.get(known.settings.backbones[0], _START[part]), measured=False)
    if part == "p4":
        cost = _comparison(ending, known)
    elif part == "p5":
        cost = _search(ending, known)
    elif part == "p6":
        cost = _final(ending, known)
    elif part == "defects":
        cost = _defects(known)
    else:
        cost = _training(name, known)
    looked = known.new_audits(1 if part == "p1" else 2)
    return dataclasses.replace(cost, fixed=cost.fixed + looked)


def _audited_seconds(effort: str) -> float:
    """Seconds that an image takes among few, by drawn cells."""
    if effort == "off":
        return 0.0
    pixels = np.stack(
        [
            phantom.draw_cell(STAGE2_CLASSES[seed % 4], seed, slide=seed, size=near_duplicates.SIZE)
            for seed in range(_AUDITED)
        ]
    )
    start = time.perf_counter()
    near_duplicates.find(pixels, effort=effort)
    return (time.perf_counter() - start) / _AUDITED


def _training(name: str, known: _Measured) -> Cost:
    """P1, P2 and P3: a fit in each protocol."""
    stage = 1 if name.startswith("p1") else 2
    fixed, scaled, epochs = _OTHER_START, 0.0, []
    for protocol in PROTOCOLS:
        recipe = recipes.plan(
            protocol,
            stage,
            phantoms=known.settings.manual_dir is None,
            stage1=name.partition("-")[2] or "20",
            stage2="resnet50" if name == "p3" else "cnn",
            weights_spec="none",
        )
        epochs.append(recipe.epochs)
        images = known.images[stage].train
        if recipe.features is None:
            scaled += recipe.epochs * images * _image_seconds(recipe, known.policy)
            continue
        measured = known.extraction("resnet50", recipe.size, recipe.features.views)
        fixed += measured.seconds
        scaled += dry_run.head_seconds(
            measured.store,
            HeadRecipe(
                hidden_units=(), epochs=recipe.epochs, batch_size=recipe.batch_size, patience=0
            ),
            protocol,
            known.policy,
        )
    return Cost(fixed, scaled, epochs[0])


def _image_seconds(recipe: training.Recipe, policy: DevicePolicy) -> float:
    """Seconds that an image takes in a step of training: the faster of two, after the first."""
    with policy.sharing.scope():
        model = recipe.build(recipe.size)
    model = training.in_fewer_passes(model, policy)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=policy.jit_compile)
    pixels = np.random.default_rng(0).integers(
        0, 256, (recipe.batch_size, recipe.size, recipe.size, 3)
    )
    batch = pixels.astype(np.float32), np.zeros(recipe.batch_size, np.int64)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.train_on_batch(*batch)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / recipe.batch_size


def _comparison(protocol: str, known: _Measured) -> Cost:
    engine = known.settings.engine
    by = {
        backbone: known.new_features(backbone, protocol, engine=engine)
        + _HEADS * known.head(backbone, 16)
        for backbone in known.settings.backbones
    }
    return Cost(_OTHER_START + sum(by.values()), by=by)


def _search(protocol: str, known: _Measured) -> Cost:
    backbone = known.settings.backbones[0]
    small, large = known.head(backbone, 16), known.head(backbone, 64)
    # A step takes about as long whatever its batch, so that the batch of 32 lies between.
    trial = float(np.mean([small, math.sqrt(small * large), large])) * _TRIAL_EPOCHS / _HEAD_EPOCHS
    stored = known.new_features(backbone, protocol, engine=known.settings.engine)
    return Cost(_OTHER_START + stored, _GRID * trial, _GRID)


def _final(protocol: str, known: _Measured) -> Cost:
    backbone = known.settings.backbones[0]
    stored = known.new_features(backbone, protocol, _FINAL_SIZE)
    # The whole model is run on every test image once more.
    total = len(known.images[2].index.ids)
    again = stored * (total - known.images[2].train) / total
    return Cost(_OTHER_START + stored + known.head(backbone, 16) + again)


def _defects(known: _Measured) -> Cost:
    """P2's network with and without D1, and heads on the features of both feeds."""
    drawn = known.settings.manual_dir is None
    backbone, size = known.settings.backbones[0], _DEFECT_SIZE if drawn else None
    stored = sum(known.new_features(backbone, protocol, size) for protocol in PROTOCOLS)
    head = known.head(backbone, 16)
    points = _DEFECT_POINTS * head * _TRIAL_EPOCHS / _HEAD_EPOCHS
    heads = _DEFECT_SEEDS * (points + _DEFECT_HEADS * head)
    recipe = recipes.plan("paper", 2, phantoms=drawn)
    epoch = known.images[2].train * _image_seconds(recipe, known.policy)
    networks = _DEFECT_SEEDS * 2
    return Cost(_OTHER_START + stored + heads, networks * recipe.epochs * epoch, recipe.epochs)
