"""Which pre-trained network is best for these cells? Frozen backbones compared, with intervals.

    python -m replication.compare --manual_dir=DIR        # DIR holds DB_4; published folders
    python -m replication.compare --folders=DIR --cut=both --folds=5   # any DIR/<class>/*
    python -m replication.compare --weights=none          # phantoms, untrained: shows that it works

Each backbone sees each image once; heads are trained on its stored features. Running the same
command again resumes; further backbones and seeds may be added to a run directory.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import backbones as backbone_flags
from replication.flags import device as device_flags
from replication.flags import engine as engine_flags
from replication.flags import shared
from replication.flags import stage2 as stage2_flags
from replication.flags import values as flag_values
from replication.learning.knobs import HeadRecipe
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import cluster_flags, commands, folder_flags

if TYPE_CHECKING:
    import distributed
    import tensorflow_datasets.public_api as tfds

    from replication.learning import features
    from tfds_pap import pipeline

_RUN_DIR = shared.run_dir("Where the comparison is written (default: runs/compare-<data>).")
_PROTOCOL = shared.protocol(
    "clean (default): each backbone's own preprocessing, best epoch on tune images. paper: BGR "
    "0..255 unscaled and the last epoch, as in P6, whose 250 px come with --size=250; P4's size is "
    "not published."
)
_SEEDS = shared.seeds(0, 1, 2, of="head")
_FOLDS = flags.DEFINE_integer(
    "folds",
    None,
    "Folds of cross-validation over all images (default: 0, the published folders, or a test role "
    "that is cut out; 5 with --folders that has no splits).",
    lower_bound=0,
)
_CUT = flags.DEFINE_enum(
    "cut",
    None,
    ["image", "group", "both"],
    "How folds are cut: by image, by group, or both; both says how much of the difference is leak "
    "and how much is scarcity of groups (default: group where every group is known, else image).",
)
_UNIT = flags.DEFINE_string("group_unit", "group", "What a group is, for texts (default: group).")
_RESIZE = flags.DEFINE_enum(
    "resize",
    "bilinear",
    ["bilinear", "antialiased"],
    "How images become that size: bilinear, four pixels each however far it shrinks, as the papers "
    "did (default); or antialiased, smoothed first, as torchvision and PIL do.",
)
_VIEWS = flags.DEFINE_enum(
    "views",
    "1",
    ["1", "8"],
    "Stored views of each image; 8 trains on flips and quarter-turns (default: 1).",
)
_UNITS = flags.DEFINE_integer(
    "units", 64, "Units of the head's hidden layer, 0 for none (default: the paper's 64).", 0
)
_DROPOUT = flags.DEFINE_float(
    "dropout", 0.2, "Dropout of the head, a share (default: the paper's 0.2).", 0, 0.95
)
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "sgd", ["sgd", "adam"], "Optimizer of the head (default: the paper's sgd)."
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.01, "Learning rate of the head (default: the paper's 0.01).", 1e-9
)
_BATCH_SIZE = shared.batch_size(16, "Images a step of the head (default: the paper's 16).")
_EPOCHS = shared.epochs(50, "Epochs at most of each head (default: the paper's 50).")
_DRY_RUN = shared.dry_run("fits, epochs")

flags.adopt_module_key_flags(backbone_flags)
flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(engine_flags)
flags.adopt_module_key_flags(stage2_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Extracts features, trains heads, compares them, and writes table, figures and page."""
    _check_flags(argv)
    seeds = flag_values.seeds(_SEEDS.value)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(cluster_flags.connected(not _DRY_RUN.value))
        _compare(seeds, start, client, stack.close)


def _compare(
    seeds: tuple[int, ...],
    start: float,
    client: "distributed.Client | None",
    release: Callable[[], object],
) -> None:
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.comparison import steps
    from replication.learning import features
    from replication.runs import description
    from tfds_pap import pipeline

    policy = device_flags.policy()
    specs = _feature_specs(policy)
    if _DRY_RUN.value:
        _dry_run(specs, seeds, policy)
        return
    builder = stage2_flags.prepare()
    index = pipeline.read_index(builder)
    recipe = _head_recipe()
    cuts, count = _cuts(index)
    design = steps.Design(
        protocol=_PROTOCOL.value, cuts=cuts, folds=count, seeds=seeds, unit=_UNIT.value
    )
    steps.check_cuts(index, design)
    run = RunDirectory.open(
        Path(_RUN_DIR.value or Path("runs") / f"compare-{steps.data_name(builder)}"),
        {
            **steps.identity(builder, design, recipe, specs),
            **device_flags.identity(policy),
            "engine": engine_flags.engine(),
            **audit_flags.identity(),
        },
    )
    audits = description.audit(run, [builder], audit_flags.effort(), audit_flags.note, client)
    if blocks := audit_flags.blocks(audits).get(builder.name):
        design = dataclasses.replace(design, blocks=blocks)
        steps.check_cuts(index, design)
    _describe(run, builder, index, policy, specs)
    print(device_flags.words(policy))
    directory = stage2_flags.features_dir()
    for spec in specs.values() if client else ():
        features.extract_features(builder, spec, directory, policy=policy, client=client)
    release()
    scored = {}
    for name, spec in specs.items():
        store = features.extract_features(builder, spec, directory, policy=policy)
        scored[name] = steps.score(run, store, spec, design, recipe, policy=policy)
    result = steps.compare(scored, design)
    page = steps.publish(
        run,
        result,
        builder,
        specs[result.winner],
        design,
        recipe,
        features_dir=directory,
        policy=policy,
        audit=audits[builder.name],
    )
    print(f"\n{len(scored)} backbones, {time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")
    print(f"TensorBoard: tensorboard --logdir={run.path / 'logs'}")


def _check_flags(argv: list[str]) -> None:
    commands.no_arguments(argv)
    backbone_flags.check()
    stage2_flags.images()
    engine_flags.engine()
    if _FOLDS.value == 1:
        raise app.UsageError("--folds=1: expected 0 (the published folders), or 2 or more")
    if _RESIZE.value != "bilinear" and _PROTOCOL.value == "paper":
        raise app.UsageError(f"--resize={_RESIZE.value}: the paper protocol resizes bilinearly")
    if _CUT.value and not _folds():
        raise app.UsageError("--cut needs --folds=2 or more")
    folder_flags.announce()


def _feature_specs(policy: DevicePolicy) -> "dict[str, features.FeatureSpec]":
    """Returns which features of each backbone are compared."""
    from replication.comparison import steps

    return steps.feature_specs(
        steps.backbone_names(backbone_flags.names(), backbone_flags.sources()),
        backbone_flags.source,
        at_hand=_DRY_RUN.value,
        protocol=_PROTOCOL.value,
        size=backbone_flags.size(),
        resize=_RESIZE.value,
        views=int(_VIEWS.value),
        precision=policy.precision,
        engine=engine_flags.engine(),
    )


def _dry_run(
    specs: "dict[str, features.FeatureSpec]", seeds: tuple[int, ...], policy: DevicePolicy
) -> None:
    from replication.comparison import steps
    from replication.runs import dry_run

    builder = stage2_flags.builder()
    images = dry_run.images(builder, stage2_flags.manual_dir())
    cuts, count = _cuts(images.index)
    # "let_in" trains two heads a fold.
    fits = len(seeds) * sum(max(count, 1) * (2 if cut == "let_in" else 1) for cut in cuts)
    lines, parts = dry_run.comparison(
        specs,
        images.index,
        fits=fits,
        recipe=_head_recipe(),
        protocol=_PROTOCOL.value,
        policy=policy,
    )
    download = sum(dry_run.download_bytes(name, backbone_flags.source(name)) for name in specs)
    parts |= {"images": images.bytes_to_prepare, "weights": download}
    folder = _RUN_DIR.value or Path("runs") / f"compare-{steps.data_name(builder)}"
    dry_run.report(Path(folder), lines, parts)


def _head_recipe() -> HeadRecipe:
    return HeadRecipe(
        hidden_units=(_UNITS.value,) if _UNITS.value else (),
        dropout=_DROPOUT.value,
        optimizer=_OPTIMIZER.value,
        learning_rate=_LEARNING_RATE.value,
        batch_size=_BATCH_SIZE.value,
        epochs=_EPOCHS.value,
    )


def _describe(
    run: RunDirectory,
    builder: "tfds.core.DatasetBuilder",
    index: "pipeline.Index",
    policy: DevicePolicy,
    specs: "dict[str, features.FeatureSpec]",
) -> None:
    from replication.comparison import steps

    steps.describe(
        run,
        builder,
        index,
        policy,
        untrained=[name for name, spec in specs.items() if spec.weights.path is None],
        images=stage2_flags.images(),
        remarks=steps.size_remarks(_PROTOCOL.value, specs),
    )


def _folds() -> int:
    """Number of folds; 0 for the published folders, or those of the tree."""
    if _FOLDS.value is not None:
        return _FOLDS.value
    return 5 if folder_flags.given() and not folder_flags.listing().has_splits else 0


def _cuts(index: "pipeline.Index") -> tuple[tuple[str, ...], int]:
    """Names of the cuts, the main one first, and the number of folds."""
    from replication.learning import heads

    count = _folds()
    if count == 0:
        return (heads.PUBLISHED,), 0
    if _CUT.value == "both":
        return ("group", "image", "let_in"), count
    return (_CUT.value or ("group" if all(index.groups) else "image"),), count


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
