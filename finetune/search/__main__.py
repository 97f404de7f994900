"""Searches how to fine-tune a backbone with KerasTuner: a head on stored features, or blocks too.

    python -m finetune.search --tuner=hyperband --manual_dir=DIR     # DIR holds DB_4
    python -m finetune.search --tuner=grid --space=paper --manual_dir=DIR --protocol=paper
    python -m finetune.search --tuner=random --weights=none          # phantoms, untrained backbone

Running the same command again goes on where it was interrupted. --workers trains several trials
side by side on this machine; KerasTuner's variables KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT spread the search over several (see README).
"""

import time
from pathlib import Path

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import device as device_flags
from replication.flags import stage2 as stage2_flags
from replication.runs.directory import RunDirectory
from tfds_pap import commands
from tfds_pap.errors import PapError

_TUNER = flags.DEFINE_enum(
    "tuner",
    "hyperband",
    ["hyperband", "bayesian", "random", "grid"],
    "Which points are tried (default: hyperband).",
)
_SPACE = flags.DEFINE_string(
    "space",
    "paper",
    "paper (default): the 162 points of P5. extended: optimizer, schedule, regularisation, views, "
    "unfrozen blocks. Or a Python file with a function space(hp).",
)
_BACKBONE = flags.DEFINE_string(
    "backbone",
    "resnet152",
    "Name of the table in replication/learning/models.py or of keras.applications "
    "(default: resnet152).",
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    "imagenet",
    "imagenet (default; Keras's download and cache), none, or the path of a file or directory of "
    ".h5 or .keras files.",
)
_OBJECTIVE = flags.DEFINE_enum(
    "objective",
    "val_macro_f1",
    ["val_macro_f1", "val_accuracy", "val_loss", "val_hsil_plus_sensitivity"],
    "What is optimised, on tune images (default: val_macro_f1).",
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "clean",
    ["paper", "clean"],
    "clean (default): tune images choose, test images are not looked at. paper: as P5, scored on "
    "images that were trained on, stopped on training accuracy, BGR 0..255.",
)
_MAX_EPOCHS = flags.DEFINE_integer(
    "max_epochs", 30, "Epochs at most of a trial (default: the paper's 30).", lower_bound=1
)
_PATIENCE = flags.DEFINE_integer(
    "patience",
    5,
    "Epochs without a better one after which a trial ends; 0 never does (default: the paper's 5).",
    lower_bound=0,
)
_FACTOR = flags.DEFINE_integer(
    "factor", 3, "Of Hyperband: one of so many trials goes on (default: 3).", lower_bound=2
)
_MAX_TRIALS = flags.DEFINE_integer(
    "max_trials",
    None,
    "Trials at most (default: 40 for random and bayesian, the whole space for grid; hyperband has "
    "its own number).",
    lower_bound=1,
)
_EXECUTIONS = flags.DEFINE_integer(
    "executions_per_trial", 1, "Fits a trial, one seed each; scores are means (default: 1).", 1
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the search and of the first fit of each trial (default: 0).", lower_bound=0
)
_SIZE = flags.DEFINE_integer(
    "size", 0, "Input in pixels (default: 0, the backbone's own, 224 for most).", lower_bound=0
)
_MAX_UNFROZEN_BLOCKS = flags.DEFINE_integer(
    "max_unfrozen_blocks",
    2,
    "Of the extended space: blocks of the backbone that may be trained, on images (default: 2; 0 "
    "keeps to features).",
    lower_bound=0,
)
_SEARCH_DIR = flags.DEFINE_string(
    "search_dir",
    None,
    "Where the search is written (default: runs/search-<tuner>-<space>-<protocol>-<data>).",
)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "Trials trained side by side on this machine (default: 1).", lower_bound=1
)
_LEASE_SECONDS = flags.DEFINE_float(
    "lease_seconds",
    60.0,
    "A worker that is silent for so long is taken for dead, and its trial given to another "
    "(default: 60).",
    lower_bound=1.0,
)

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(stage2_flags)

#: Random and Bayesian search have no end of their own.
_DEFAULT_TRIALS = 40
#: More are a mistake: a grid of a space that was not made for one.
_MOST_TRIALS = 10_000


def main(argv: list[str]) -> None:
    """Prepares features, shows what will be done, searches, and writes what was found."""
    _check_flags(argv)
    start = time.perf_counter()

    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    import keras_tuner

    from finetune import recipes, space
    from finetune.search import (
        cluster,
        estimate,
        local_workers,
        oracles,
        progress,
        scoring,
        steps,
        tensorboard,
        tuner,
    )
    from finetune.tuning import Tuning
    from replication.drawing import pages
    from replication.learning import features, weights
    from replication.runs import experiment
    from tfds_pap import folders, leak_audit, pipeline, roles

    try:
        if cluster.is_worker():
            local_workers.end_with_chief()
            # It prepares data, features and directory, which its workers share.
            cluster.wait_for_chief()
        policy = device_flags.policy()
        base = Tuning(
            backbone=_BACKBONE.value.lower(),
            size=_SIZE.value,
            epochs=_MAX_EPOCHS.value,
            patience=_PATIENCE.value,
        )
        searched = space.find(_SPACE.value, base, max_unfrozen_blocks=_MAX_UNFROZEN_BLOCKS.value)
        hyperparameters = searched.hyperparameters()
        search = {
            "max_trials": _max_trials(),
            "max_epochs": _MAX_EPOCHS.value,
            "factor": _FACTOR.value,
        }
        plan = oracles.plan(_TUNER.value, hyperparameters, **search)
        if plan.trials > _MOST_TRIALS:
            raise PapError(
                f"--tuner={_TUNER.value} --space={_SPACE.value}: {plan.trials:,} trials; give "
                "--max_trials, or another --tuner"
            )
        found = weights.find(base.backbone, _WEIGHTS.value)
        builder = stage2_flags.prepare()
        index = pipeline.read_index(builder)
        audits = {builder.name: leak_audit.audit_builder(builder, effort=audit_flags.effort())}
        blocks = audit_flags.blocks(audits).get(builder.name)
        assigned = scoring.assign_roles(index, _PROTOCOL.value, blocks)
        scoring.check_objective(_OBJECTIVE.value, index, assigned.tune)
        spec = recipes.feature_spec(
            base, found, _PROTOCOL.value, policy.precision, searched.views(hyperparameters)
        )
        run = RunDirectory.open(
            _search_dir(),
            {
                "tuner": _TUNER.value,
                "space": Path(_SPACE.value).name,
                "resolved space": searched.digest(hyperparameters),
                "objective": _OBJECTIVE.value,
                "protocol": _PROTOCOL.value,
                "max_epochs": _MAX_EPOCHS.value,
                "patience": _PATIENCE.value,
                "factor": _FACTOR.value,
                "executions_per_trial": _EXECUTIONS.value,
                "seed": _SEED.value,
                "source": stage2_flags.source(),
                **spec.key(pipeline.identity(builder)),
                **device_flags.identity(policy),
                **audit_flags.identity(),
            },
            flag="search_dir",
        )
        if not cluster.is_worker():
            experiment.audit(run, [builder], audit_flags.effort(), audit_flags.note)
            steps.describe(
                run,
                builder,
                policy,
                assigned,
                untrained=found.path is None,
                protocol=_PROTOCOL.value,
                images=stage2_flags.images(),
            )
            print(device_flags.words(policy))
        study = tuner.Study(
            space=searched,
            spec=spec,
            store=features.extract(builder, spec, stage2_flags.features_dir(), policy=policy),
            assigned=assigned,
            images=lambda: experiment.images(builder, spec.size, spec.resize),
            protocol=_PROTOCOL.value,
            objective=_OBJECTIVE.value,
            executions=_EXECUTIONS.value,
            seed=_SEED.value,
            policy=policy,
        )
        search_tuner = tuner.SearchTuner(
            oracles.build(
                _TUNER.value,
                hyperparameters,
                scoring.objective(_OBJECTIVE.value),
                seed=_SEED.value,
                **search,
            ),
            study,
            run.path,
            lease_seconds=_LEASE_SECONDS.value,
        )
        if cluster.is_worker():
            search_tuner.search()
            return
        steps.print_space(searched, hyperparameters, plan, _EXECUTIONS.value)
        if not search_tuner.oracle.end_order:
            expected = estimate.estimate(study, plan)
            seconds = pages.duration(expected.seconds, digits=0)
            print(f"About {seconds} on one process: {expected.words}")
        tensorboard.write_columns(run.path / "logs", hyperparameters, _OBJECTIVE.value)
        with progress.Progress(search_tuner.oracle, plan) as shown:
            if cluster.is_chief():
                search_tuner.serve(shown.update)
            elif _WORKERS.value > 1:
                with local_workers.LocalWorkers(_WORKERS.value, run.path) as workers:
                    search_tuner.serve(lambda: (shown.update(), workers.check()))
            else:
                search_tuner.search_alone(shown.update)
        page = steps.publish(run, study, plan, name=_TUNER.value)
    except (PapError, folders.TreeError, roles.CutError) as error:
        raise SystemExit(f"finetune.search: {error}") from None
    except (keras_tuner.errors.FatalError, OSError) as error:
        raise SystemExit(
            f"finetune.search: {error}; what is finished in {_search_dir()} is kept, the "
            "same command goes on"
        ) from None
    print(f"\n{time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")
    print(f"TensorBoard: tensorboard --logdir={run.path / 'logs'}")
    print(f"Train the best: python -m finetune.train --from_search={run.path}")


def _check_flags(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if _TUNER.value == "hyperband" and _MAX_TRIALS.value is not None:
        raise app.UsageError(
            "--max_trials: hyperband has its own number of trials, which --max_epochs and "
            "--factor decide"
        )
    stage2_flags.images()
    if 0 < _SIZE.value < 32:
        raise app.UsageError(f"--size={_SIZE.value}: expected 0, or 32 or more pixels")


def _max_trials() -> int | None:
    if _TUNER.value in ("random", "bayesian"):
        return _MAX_TRIALS.value or _DEFAULT_TRIALS
    return _MAX_TRIALS.value


def _search_dir() -> Path:
    if _SEARCH_DIR.value:
        return Path(_SEARCH_DIR.value)
    name = (
        f"search-{_TUNER.value}-{Path(_SPACE.value).stem}-{_PROTOCOL.value}-{stage2_flags.source()}"
    )
    return Path("runs") / name


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
