"""Reproduces the two-stage paper: from image files to a report.

    python -m replication.run                          # phantoms, about four minutes on two cores
    python -m replication.run --manual_dir=DIR         # DIR holds DB_3 and DB_4; the paper's epochs
    python -m replication.run --folders=DIR            # a lab's own classes, any DIR/<class>/*

Running the same command again resumes a run that was interrupted and skips what is finished.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import device as device_flags
from replication.flags import images as image_flags
from replication.flags import shared
from replication.flags import values as flag_values
from replication.runs.device import DevicePolicy
from tfds_pap import cluster_flags, commands, folder_flags, path_flags

if TYPE_CHECKING:
    from replication.learning import training
    from replication.runs import sources

_STAGES = ("1", "2")

_MANUAL_DIR = shared.manual_dir("DB_3 and DB_4")
_DATA_DIR = shared.data_dir()
_BACKGROUNDS = path_flags.define(
    "backgrounds",
    None,
    "With --folders: images without a cell, against which the first stage learns those of "
    "--folders; a URL is copied to this machine first (default: none).",
    path_flags.FOLDER_OR_URL,
)
_ANNOTATED_FIELDS = path_flags.define(
    "annotated_fields",
    None,
    "With --folders: whole fields and their nuclei.csv (field,x,y,label; every nucleus); ROIs of "
    "the first stage are cut out of them, and they are read at the end; a URL is copied to this "
    "machine first (default: none).",
    path_flags.FOLDER_OR_URL,
)
_RUN_DIR = shared.run_dir(
    "Where the run is written (default: runs/phantom, runs/original or runs/<name of --folders>)."
)
_PROTOCOL = shared.protocol(
    "As the authors ran it, without their defects, or both (default).",
    default="both",
    further=["both"],
)
_STAGE_LIST = flags.DEFINE_list(
    "stages",
    None,
    "Stages to train (default: 1,2; with --folders 2 alone where nothing says what a background "
    "is: --manual_dir with DB_3, --backgrounds or --annotated_fields).",
)
_STAGE1 = flags.DEFINE_enum(
    "stage1",
    "20",
    ["20", "50"],
    "Input of the first stage in pixels: 20 (P1, default), or 50, the later variant that the "
    "published 0.992 is of.",
)
_STAGE2 = flags.DEFINE_enum(
    "stage2",
    "cnn",
    ["cnn", "resnet50"],
    "Model of the second stage: the original CNN (P2, default) or a frozen ResNet50 (P3).",
)
_WEIGHTS = path_flags.define_word_or_path(
    "weights",
    "imagenet",
    "Of the ResNet50: imagenet (default; Keras's download and cache), none, or the path of a .h5 "
    "or .keras file or of a directory of them.",
    shared.WEIGHTS,
    shared.NO_WEIGHTS,
)
_EPOCHS = shared.epochs(
    None, "Epochs at most for every model (default: the paper's 100; phantoms: see --budget)."
)
_BUDGET = flags.DEFINE_integer(
    "budget",
    None,
    "Minutes that a run on drawn images is made for, on two cores with AVX2 (default: 4): more "
    "minutes are more epochs.",
    lower_bound=4,
)
_BATCH_SIZE = shared.batch_size(
    None, "Images a step (default: the paper's 32; phantoms: 8 in stage 2)."
)
_SEEDS = shared.seeds(0, of="model")
_AUGMENT = flags.DEFINE_enum(
    "augment",
    None,
    ["none", "flips"],
    "Augmentation of the clean protocol: none, or the eight flips and quarter-turns (default).",
)
_PREVALENCE = shared.prevalence(": the share in a folder is no prevalence")
_SCAN_FIELDS = flags.DEFINE_integer(
    "scan_fields",
    3,
    "Whole fields that the trained stages read at the end: phantoms, the first in fields/ below "
    "--manual_dir where it exists, or of --annotated_fields (default: 3; 0: none).",
    lower_bound=0,
)
_DRY_RUN = shared.dry_run("fits, epochs")
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Write a TensorBoard profile of steps 5 to 15 of each fit (default: off)."
)

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(image_flags)
flags.adopt_module_key_flags(folder_flags)
flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Prepares the data, trains both stages in both protocols, reads fields, writes the report."""
    commands.no_arguments(argv)
    source = _source()
    _check_flags(source)
    stages, seeds = _stages(), flag_values.seeds(_SEEDS.value)
    protocols = ("paper", "clean") if _PROTOCOL.value == "both" else (_PROTOCOL.value,)
    images = image_flags.declared(_MANUAL_DIR.value)
    folder_flags.announce()
    start = time.perf_counter()

    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.fields import whole_fields
    from replication.runs import publication, results
    from replication.runs import steps as run_steps

    policy = device_flags.policy()
    steps = run_steps.Steps(
        path=_run_dir(source),
        sources=_sources(source),
        images=images,
        policy=policy,
        identity=_identity(source, policy),
        planned={(name, stage): _recipe(name, stage) for name in protocols for stage in stages},
        prevalence=_PREVALENCE.value,
        profile=_PROFILE.value,
        effort=audit_flags.effort(),
    )
    if _DRY_RUN.value:
        steps.dry_run(seeds, stages, ending=_SCAN_FIELDS.value > 0)
        return
    # The report shows what earlier commands trained here as well.
    needed = {fit.stage for fit in results.read_fits(steps.run)}
    if source != "phantom":
        # Before hours of training: a tree may be wrong. Drawn images cannot be.
        needed.update(stages)
    with cluster_flags.connected() as client:
        steps.prepare(sorted(needed), client)
    missing = steps.missing(seeds, stages)
    progress = steps.progress(missing, ending=_SCAN_FIELDS.value > 0)
    print(device_flags.words(policy), *progress.plan(), sep="\n", flush=True)
    with progress:
        for seed, stage, protocol in missing:
            steps.fit(seed, stage, protocol, progress)
    whole_fields.scan_of_run(steps.run, steps.sources.fields, _SCAN_FIELDS.value, policy)
    page = publication.publish(
        steps.run, steps.builders, steps.audits, prevalence=_PREVALENCE.value
    )
    print(f"\n{len(results.read_fits(steps.run))} models, {time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")
    print(f"TensorBoard: tensorboard --logdir={steps.path / 'logs'}")


def _source() -> str:
    if folder_flags.given():
        return "folders"
    return "phantom" if _MANUAL_DIR.value is None else "original"


def _check_flags(source: str) -> None:
    folder_flags.check()
    if _BUDGET.value and (source != "phantom" or _EPOCHS.value):
        raise app.UsageError("--budget is for drawn images, without --epochs or other images")
    further = {"backgrounds": _BACKGROUNDS.value, "annotated_fields": _ANNOTATED_FIELDS.value}
    for name, value in further.items():
        if value and source != "folders":
            raise app.UsageError(f"--{name} is for the classes of --folders, which is not given")
    told = {"manual_dir": _MANUAL_DIR.value, "backgrounds": _BACKGROUNDS.value}
    if source == "folders" and all(told.values()):
        raise app.UsageError("--manual_dir and --backgrounds both say what a background is: one")


def _stages() -> list[int]:
    stages = _STAGE_LIST.value
    if stages is None:
        stages = list(_STAGES)
        if folder_flags.given() and not _has_backgrounds():
            print("Stage 1 is not trained: --backgrounds would say what is no cell")
            stages = ["2"]
    unknown = [stage for stage in stages if stage not in _STAGES]
    if unknown or not stages:
        raise app.UsageError(f"--stages={','.join(stages)}: expected 1, 2 or 1,2")
    if "1" in stages and folder_flags.given() and not _has_backgrounds():
        raise app.UsageError(
            "--stages=1 with --folders needs backgrounds: give --manual_dir with DB_3, "
            "--backgrounds or --annotated_fields"
        )
    return sorted({int(stage) for stage in stages})


def _has_backgrounds() -> bool:
    return bool(_MANUAL_DIR.value or _BACKGROUNDS.value or _ANNOTATED_FIELDS.value)


def _run_dir(source: str) -> Path:
    if _RUN_DIR.value:
        return Path(_RUN_DIR.value)
    return Path("runs") / (folder_flags.name() if source == "folders" else source)


def _sources(kind: str) -> "sources.Sources":
    from replication.runs import sources

    return sources.Sources(
        kind,
        manual_dir=_MANUAL_DIR.value,
        data_dir=_DATA_DIR.value,
        own=folder_flags.listing() if folder_flags.given() else None,
        backgrounds=_BACKGROUNDS.value,
        annotated_fields=_ANNOTATED_FIELDS.value,
        rois=None if _DRY_RUN.value else Path("runs") / "rois",
    )


def _recipe(protocol: str, stage: int) -> "training.Recipe":
    from replication.learning import recipes
    from replication.runs import dry_run

    return recipes.plan(
        protocol,
        stage,
        phantoms=_source() == "phantom",
        stage1=_STAGE1.value,
        stage2=_STAGE2.value,
        weights_spec=dry_run.at_hand("resnet50", _WEIGHTS.value)
        if _DRY_RUN.value
        else _WEIGHTS.value,
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        augment=_AUGMENT.value,
        minutes=_BUDGET.value,
        classes=len(folder_flags.listing().class_names) if folder_flags.given() else None,
    )


def _identity(source: str, policy: DevicePolicy) -> dict[str, object]:
    """Everything that results depend on; stages, protocols and seeds only choose among fits."""
    return {
        "source": source,
        "epochs": _EPOCHS.value,
        "budget": _BUDGET.value,
        "batch_size": _BATCH_SIZE.value,
        "augment": _AUGMENT.value,
        "stage1": _STAGE1.value,
        "stage2": _STAGE2.value,
        "weights": _WEIGHTS.value if _STAGE2.value == "resnet50" else None,
        **folder_flags.identity(),
        **device_flags.identity(policy),
        **audit_flags.identity(),
    }


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
