"""How large is each defect of the published code? The paper protocol with and without it.

    python -m replication.defects                         # drawn images, untrained backbone
    python -m replication.defects --manual_dir=DIR        # DIR holds DB_4; the paper's epochs
    python -m replication.defects --defects=D1,D4 --seeds=0,1,2 --epochs=20 --manual_dir=DIR

D1 to D8 are those of docs/defects.md, one at a time. Running the same command again resumes;
further seeds and defects may be added to a run directory.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import device as device_flags
from replication.flags import shared
from replication.flags import stage2 as stage2_flags
from replication.flags import values as flag_values
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import commands, folder_flags, path_flags

if TYPE_CHECKING:
    from replication.ablation import steps

_DEFECTS = flags.DEFINE_list(
    "defects", None, "Defects to measure, such as D1,D4 (default: D1 to D8)."
)
_RUN_DIR = shared.run_dir("Where the sizes are written (default: runs/defects-<data>).")
_SEEDS = shared.seeds(0, 1, of="model")
_EPOCHS = shared.epochs(
    None, "Epochs of P2's network (default: the paper's 100; phantoms: 9). Heads have their own."
)
_BATCH_SIZE = shared.batch_size(
    None, "Images a step of P2's network (default: the paper's 32; phantoms: 8)."
)
_BACKBONE = flags.DEFINE_string(
    "backbone",
    None,
    "Frozen backbone of P5's and P6's heads (default: the paper's resnet152; phantoms: "
    "mobilenetv2_035).",
)
_WEIGHTS = path_flags.define_word_or_path(
    "weights",
    None,
    "Of the backbone: imagenet (default; Keras's download and cache), none (default of phantoms; "
    "its sizes say nothing of trained ones), or the path of a file or directory of .h5 or .keras "
    "files.",
    shared.WEIGHTS,
    shared.NO_WEIGHTS,
)
_SIZE = flags.DEFINE_integer(
    "size",
    None,
    "Input of the backbone in pixels (default: its own; phantoms: 96).",
    lower_bound=32,
)
_FOLDS = flags.DEFINE_integer("folds", 5, "Folds of D6 (default: 5).", lower_bound=2)
_POINTS = flags.DEFINE_integer(
    "p5_points",
    18,
    "Of P5's 162 points, how many are trained for D3: the authors' choice and others drawn at "
    "random (default: 18).",
    lower_bound=1,
    upper_bound=162,
)
_UNIT = flags.DEFINE_string("group_unit", "group", "What a group is, for texts (default: group).")
_DRY_RUN = shared.dry_run("fits, epochs")

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(stage2_flags)
flags.adopt_module_key_flags(audit_flags)

#: Of drawn images, which say nothing of a backbone: the smallest one, at a small input.
_PHANTOM_BACKBONE, _PHANTOM_SIZE = "mobilenetv2_035", 96


def main(argv: list[str]) -> None:
    """Trains what is missing, computes the size of each defect, and writes table, figure, page."""
    commands.no_arguments(argv)
    defects, seeds = _defects(), flag_values.seeds(_SEEDS.value)
    images = stage2_flags.images()
    folder_flags.announce()
    start = time.perf_counter()

    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.ablation import report, steps
    from replication.runs import description
    from tfds_pap import preparing

    policy = device_flags.policy()
    plan = _plan(defects, seeds, policy)
    path = Path(_RUN_DIR.value or Path("runs") / f"defects-{stage2_flags.name()}")
    if _DRY_RUN.value:
        _dry_run(plan, path, policy)
        return
    builder = stage2_flags.prepare()
    identity = {**_identity(plan, policy), "data": preparing.identity(builder)}
    run = RunDirectory.open(path, identity)
    audits = description.audit(run, [builder], audit_flags.effort(), audit_flags.note)
    untrained = plan.wants(*steps.OF_HEADS) and plan.specs["bgr"].weights.path is None
    description.describe(
        run,
        {2: builder},
        policy,
        program="replication.defects",
        images=images,
        remarks=[description.UNTRAINED] if untrained else [],
    )
    print(device_flags.words(policy))
    work = steps.Work(
        run=run,
        plan=plan,
        builder=builder,
        policy=policy,
        identity=identity,
        images=images,
        features_dir=stage2_flags.features_dir(),
        blocks=audit_flags.blocks(audits).get(builder.name),
    )
    page = report.write(run, work.measure(), plan)
    print(f"\n{len(defects)} defects, {time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")


def _defects() -> tuple[str, ...]:
    every = tuple(f"D{number}" for number in range(1, 9))
    named = tuple(_DEFECTS.value or every)
    if unknown := [name for name in named if name not in every]:
        raise app.UsageError(f"--defects={','.join(named)}: {unknown[0]} is none of D1 to D8")
    return tuple(name for name in every if name in named)


def _plan(defects: tuple[str, ...], seeds: tuple[int, ...], policy: DevicePolicy) -> "steps.Plan":
    from replication.ablation import steps
    from replication.learning import features, recipes
    from replication.runs import dry_run

    phantoms = stage2_flags.source() == "phantom"
    own = len(folder_flags.listing().class_names) if folder_flags.given() else None
    networks = {
        name: recipes.plan(
            "paper",
            2,
            phantoms=phantoms,
            epochs=_EPOCHS.value,
            batch_size=_BATCH_SIZE.value,
            classes=own,
            without=without,
        )
        for name, without in ((steps.WHOLE, None), (steps.WITHOUT_D1, "D1"))
    }
    backbone = _BACKBONE.value or (_PHANTOM_BACKBONE if phantoms else "resnet152")
    source = _WEIGHTS.value or ("none" if phantoms else "imagenet")
    if _DRY_RUN.value:
        source = dry_run.at_hand(backbone, source)
    specs = {}
    # Weights that no defect needs need not be there.
    if {*defects} & {*steps.OF_HEADS}:
        specs = {
            name: features.feature_spec(
                backbone,
                source=source,
                protocol=protocol,
                size=_SIZE.value or (_PHANTOM_SIZE if phantoms else None),
                precision=policy.precision,
            )
            for name, protocol in (("bgr", "paper"), ("own", "clean"))
        }
    return steps.Plan(
        defects=defects,
        seeds=seeds,
        networks=networks,
        specs=specs,
        folds=_FOLDS.value,
        points=steps.points_of_p5(_POINTS.value),
        unit=_UNIT.value,
    )


def _dry_run(plan: "steps.Plan", path: Path, policy: DevicePolicy) -> None:
    from replication.ablation import forecast
    from replication.runs import dry_run

    counted = dry_run.images(stage2_flags.builder(), stage2_flags.manual_dir())
    lines, parts = forecast.forecast(plan, path, counted, policy)
    if plan.specs:
        source = _WEIGHTS.value or ("none" if stage2_flags.source() == "phantom" else "imagenet")
        parts["weights"] = dry_run.download_bytes(plan.specs["bgr"].backbone, source)
    dry_run.report(path, lines, parts)


def _identity(plan: "steps.Plan", policy: DevicePolicy) -> dict[str, Any]:
    """Everything that results depend on, but for the data; seeds and defects choose among fits."""
    network = next(iter(plan.networks.values()))
    of_heads = {
        f"{name} features": {k: v for k, v in spec.key("").items() if k != "data"}
        for name, spec in plan.specs.items()
    }
    return {
        "source": stage2_flags.source(),
        "epochs": network.epochs,
        "batch_size": network.batch_size,
        "folds": plan.folds,
        "p5_points": len(plan.points),
        **of_heads,
        **folder_flags.identity(),
        **device_flags.identity(policy),
        **audit_flags.identity(),
    }


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
