"""What frozen backbones score on any lab's images, cut by image and by group, as one table.

    python -m replication.benchmark --folders=DIR                        # weights of Keras
    python -m replication.benchmark --folders=DIR --layout=sipakmed --weights=WEIGHTS
    python -m replication.benchmark --manual_dir=DIR --images=stand-in      # a tree like DB_4

Heads are those of P6, folds are cut over all images, and each row of benchmark.csv says on what and
with what it was made, so that it can be cited and set beside another lab's. Running the same
command again resumes; further backbones may be added to a run directory.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

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

    from replication.comparison import steps
    from replication.learning import features
    from tfds_pap import pipeline

_RUN_DIR = shared.run_dir("Where the benchmark is written (default: runs/benchmark-<data>).")
_NAME = flags.DEFINE_string(
    "name", None, "What the table calls the images, such as their source and its DOI (default: "
    "the folder's name)."
)  # fmt: skip
_SEEDS = shared.seeds(0, 1, 2, of="head and cut")
_FOLDS = flags.DEFINE_integer(
    "folds", 5, "Folds of each cut over all images (default: 5).", lower_bound=2
)
_UNIT = flags.DEFINE_string("group_unit", "group", "What a group is, for texts (default: group).")
_EPOCHS = shared.epochs(50, "Epochs of each head (default: the paper's 50).")
_DRY_RUN = shared.dry_run("fits, epochs")

_PROTOCOL = "clean"

PROGRAM = "replication.benchmark"

flags.adopt_module_key_flags(backbone_flags)
flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(engine_flags)
flags.adopt_module_key_flags(stage2_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Extracts features, trains heads under each cut, and writes table and page."""
    commands.no_arguments(argv)
    backbone_flags.check()
    stage2_flags.images()
    engine_flags.engine()
    seeds = flag_values.seeds(_SEEDS.value)
    folder_flags.announce()
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(cluster_flags.connected(not _DRY_RUN.value))
        _benchmark(seeds, start, client, stack.close)


def _benchmark(
    seeds: tuple[int, ...],
    start: float,
    client: "distributed.Client | None",
    release: Callable[[], object],
) -> None:
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.comparison import benchmark, steps
    from replication.learning import features
    from replication.runs import description, dry_run
    from tfds_pap import pipeline

    policy = device_flags.policy()
    specs = steps.feature_specs(
        steps.backbone_names(backbone_flags.names(), backbone_flags.sources()),
        backbone_flags.source,
        at_hand=_DRY_RUN.value,
        protocol=_PROTOCOL,
        size=backbone_flags.size(),
        precision=policy.precision,
        engine=engine_flags.engine(),
    )
    if _DRY_RUN.value:
        _dry_run(specs, seeds, policy)
        return
    builder = stage2_flags.prepare()
    index = pipeline.read_index(builder)
    design = _design(index, seeds)
    steps.check_cuts(index, design)
    run = RunDirectory.open(
        _folder(steps.data_name(builder)),
        {
            **steps.identity(builder, design, _head(), specs),
            **device_flags.identity(policy),
            "engine": engine_flags.engine(),
            **audit_flags.identity(),
        },
    )
    audits = description.audit(run, [builder], audit_flags.effort(), audit_flags.note, client)
    if blocks := audit_flags.blocks(audits).get(builder.name):
        design = dataclasses.replace(design, blocks=blocks)
        steps.check_cuts(index, design)
    untrained = [name for name, spec in specs.items() if spec.weights.path is None]
    steps.describe(
        run,
        builder,
        index,
        policy,
        untrained=untrained,
        images=stage2_flags.images(),
        program=PROGRAM,
    )
    print(device_flags.words(policy))
    directory = stage2_flags.features_dir()
    for spec in specs.values() if client else ():
        features.extract_features(builder, spec, directory, policy=policy, client=client)
    release()
    for spec in specs.values():
        store = features.extract_features(builder, spec, directory, policy=policy)
        steps.score(run, store, spec, design, _head(), policy=policy)
    layout = folder_flags.listing().layout if folder_flags.given() else builder.TREE
    name = _NAME.value or steps.data_name(builder)
    run.update_manifest(
        benchmark=benchmark.describe(
            name, layout, index, design, specs, _head(), audits[builder.name]
        )
    )
    page = benchmark.write(run)
    benchmark.print_table(run)
    print(f"\n{dry_run.count(len(specs), 'model')}, {time.perf_counter() - start:.0f} s")
    print(f"Table: {run.path / benchmark.TABLE}")
    print(f"Report: {page}")


def _folder(name: str) -> Path:
    return Path(_RUN_DIR.value or Path("runs") / f"benchmark-{name}")


def _head() -> HeadRecipe:
    return HeadRecipe(epochs=_EPOCHS.value)


def _design(index: "pipeline.Index", seeds: tuple[int, ...]) -> "steps.Design":
    from replication.comparison import benchmark, steps

    return steps.Design(
        protocol=_PROTOCOL,
        cuts=benchmark.cuts(index),
        folds=_FOLDS.value,
        seeds=seeds,
        unit=_UNIT.value,
    )


def _dry_run(
    specs: "dict[str, features.FeatureSpec]", seeds: tuple[int, ...], policy: DevicePolicy
) -> None:
    from replication.comparison import steps
    from replication.runs import dry_run

    builder = stage2_flags.builder()
    images = dry_run.images(builder, stage2_flags.manual_dir())
    lines, parts = dry_run.comparison(
        specs,
        images.index,
        fits=len(seeds) * _FOLDS.value * len(_design(images.index, seeds).cuts),
        recipe=_head(),
        protocol=_PROTOCOL,
        policy=policy,
    )
    download = sum(dry_run.download_bytes(name, backbone_flags.source(name)) for name in specs)
    parts |= {"images": images.bytes_to_prepare, "weights": download}
    dry_run.report(_folder(steps.data_name(builder)), lines, parts)


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
