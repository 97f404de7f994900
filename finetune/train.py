"""Trains the model that a search chose, or that a file describes, and scores it once.

    python -m finetune.train --from_search=DIR --manual_dir=DIR --seeds=0,1,2
    python -m finetune.train --hparams=p6 --manual_dir=DIR --protocol=paper     # the paper's model
    python -m finetune.train --from_search=DIR --second_phase_blocks=2

It writes the same run directory and report as replication.run, and one full .keras model (backbone
and head) a seed. Running the same command again resumes; further seeds may be added.
"""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import device as device_flags
from replication.flags import shared
from replication.flags import stage2 as stage2_flags
from replication.flags import values as flag_values
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import cluster_flags, commands, folder_flags, path_flags
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    from finetune import final_fit

_FROM_SEARCH = path_flags.define(
    "from_search",
    None,
    "Directory of a search, whose best trial is trained (default: none).",
    path_flags.RUN,
)
_HPARAMS = flags.DEFINE_string(
    "hparams",
    None,
    "JSON file with fields of finetune.tuning.Tuning, such as best.json of a search; p6 is the "
    "paper's final model (default: none).",
)
_BACKBONE = flags.DEFINE_string(
    "backbone",
    None,
    "With --hparams: another backbone than the one it names (default: its own).",
)
_WEIGHTS = shared.weights("; those of the search where there is one")
_PROTOCOL = shared.protocol(
    "clean (default): the backbone's own preprocessing, best epoch on tune images. paper: BGR "
    "0..255 unscaled, random tune images, and the last epoch, as in P6."
)
_SEEDS = shared.seeds(0, of="model")
_TRAIN_ON = flags.DEFINE_enum(
    "train_on",
    "train",
    ["train", "train_and_tune"],
    "train (default), or train_and_tune: the tune images choose the number of epochs, then train "
    "too; nothing is left to calibrate on.",
)
_SECOND_PHASE_BLOCKS = flags.DEFINE_integer(
    "second_phase_blocks",
    0,
    "Last blocks of the backbone trained on images once the head is trained, BatchNorm in "
    "inference mode (default: 0, no second phase).",
    lower_bound=0,
)
_SECOND_PHASE_LEARNING_RATE = flags.DEFINE_float(
    "second_phase_learning_rate", 1e-5, "Learning rate of the second phase (default: 1e-5).", 1e-12
)
_SECOND_PHASE_EPOCHS = flags.DEFINE_integer(
    "second_phase_epochs", 10, "Epochs at most of the second phase (default: 10).", lower_bound=1
)
_RUN_DIR = shared.run_dir("Where the run is written (default: runs/finetuned-<backbone>-<data>).")
_PREVALENCE = shared.prevalence()

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(stage2_flags)
flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Trains one model a seed, looks at the test images once, and writes the report."""
    commands.no_arguments(argv)
    if bool(_FROM_SEARCH.value) == bool(_HPARAMS.value):
        raise app.UsageError("--from_search, --hparams: give one of them")
    if _BACKBONE.value and _FROM_SEARCH.value:
        raise app.UsageError("--backbone goes with --hparams; a search has its own backbone")
    seeds, images = flag_values.seeds(_SEEDS.value), stage2_flags.images()
    folder_flags.announce()
    start = time.perf_counter()

    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.runs import description, publication, results

    policy = device_flags.policy()
    plan = _plan(policy)
    run = RunDirectory.open(
        _RUN_DIR.value or Path("runs") / f"finetuned-{plan.tuning.backbone}-{stage2_flags.name()}",
        {
            "source": stage2_flags.source(),
            **plan.identity(),
            **device_flags.identity(policy),
            **audit_flags.identity(),
        },
    )
    builders = {2: plan.builder}
    with cluster_flags.connected() as client:
        audits = description.audit(
            run, [plan.builder], audit_flags.effort(), audit_flags.note, client
        )
    blocks = audit_flags.blocks(audits)
    plan = dataclasses.replace(plan, blocks=blocks.get(plan.builder.name))
    description.describe(
        run,
        builders,
        policy,
        program="finetune.train",
        images=images,
        remarks=[] if plan.spec.weights.path else [description.UNTRAINED],
        blocks=blocks,
    )
    print(device_flags.words(policy))
    for seed in seeds:
        plan.run(run, seed, prevalence=_PREVALENCE.value)
    page = publication.publish(run, builders, audits, prevalence=_PREVALENCE.value)
    fits = results.read_fits(run)
    for fit in fits:
        print(f"Model: {fit.model_path}")
        if "whole_model_differs_by" in fit.info:
            print(
                f"  on all {sum(fit.info['counts']['test'].values())} test images as on stored "
                f"features, to {fit.info['whole_model_differs_by']:.1g} in probability"
            )
    print(f"\n{len(fits)} models, {time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")
    print(f"TensorBoard: tensorboard --logdir={run.path / 'logs'}")


def _plan(policy: DevicePolicy) -> "final_fit.FinalFit":
    """Returns how the model is trained, as the search or the file says.

    Raises:
        PapError: If they do not go with the other flags.
    """
    from finetune import final_fit
    from finetune.search import collect
    from finetune.tuning import P6, Tuning
    from replication.learning import features
    from tfds_pap import preparing

    monitor, best = "val_loss", None
    if _FROM_SEARCH.value:
        best = collect.best(RunDirectory(Path(_FROM_SEARCH.value)))
        tuning, monitor = best.tuning, best.objective
        print(f"Trial {best.trial.trial_id}: {monitor} {best.trial.score:.4f}")
    else:
        tuning = Tuning.read(P6 if _HPARAMS.value == "p6" else Path(_HPARAMS.value))
        if _BACKBONE.value:
            tuning = tuning.replace({"backbone": _BACKBONE.value.lower()})
    if tuning.unfrozen_blocks and _SECOND_PHASE_BLOCKS.value:
        raise PapError(
            f"--second_phase_blocks={_SECOND_PHASE_BLOCKS.value}: expected 0, as these "
            f"hyperparameters train blocks at once (unfrozen_blocks={tuning.unfrozen_blocks})"
        )
    spec = features.feature_spec(
        tuning.backbone,
        source=_WEIGHTS.value,
        protocol=_PROTOCOL.value,
        size=tuning.size,
        views=tuning.views,
        precision=policy.precision,
    )
    if best and best.weights != spec.weights.digest:
        raise PapError(
            f"--weights={_WEIGHTS.value}: the search in {_FROM_SEARCH.value} used other ones"
        )
    builder = stage2_flags.prepare()
    if best and best.data != preparing.identity(builder):
        print("Note: the search looked at other images than these")
    return final_fit.FinalFit(
        tuning=tuning,
        spec=spec,
        protocol=_PROTOCOL.value,
        monitor=monitor,
        train_on_tune=_TRAIN_ON.value == "train_and_tune",
        second=final_fit.SecondPhase(
            blocks=_SECOND_PHASE_BLOCKS.value,
            learning_rate=_SECOND_PHASE_LEARNING_RATE.value,
            epochs=_SECOND_PHASE_EPOCHS.value,
        ),
        builder=builder,
        features_dir=stage2_flags.features_dir(),
        policy=policy,
    )


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
