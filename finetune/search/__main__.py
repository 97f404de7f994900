"""Searches how to fine-tune a backbone with KerasTuner: a head on stored features, or blocks too.

    python -m finetune.search --tuner=hyperband --manual_dir=DIR     # DIR holds DB_4
    python -m finetune.search --tuner=grid --space=paper --manual_dir=DIR --protocol=paper
    python -m finetune.search --tuner=random --weights=none          # phantoms, untrained backbone

Running the same command again goes on where it was interrupted. --workers trains several trials
side by side on this machine; KerasTuner's variables KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT spread the search over several (see README).
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from replication.flags import audit as audit_flags
from replication.flags import device as device_flags
from replication.flags import engine as engine_flags
from replication.flags import shared
from replication.flags import stage2 as stage2_flags
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import cluster_flags, commands, folder_flags, path_flags
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed
    import keras_tuner
    import tensorflow_datasets.public_api as tfds

    from finetune import space
    from finetune.search import oracles, tuner
    from finetune.tuning import Tuning
    from replication.learning import features
    from tfds_pap import roles

_TUNER = flags.DEFINE_enum(
    "tuner",
    "hyperband",
    ["hyperband", "bayesian", "random", "grid"],
    "Which points are tried (default: hyperband).",
)
_SPACE = path_flags.define_word_or_path(
    "space",
    "paper",
    "paper (default): the 162 points of P5. extended: optimizer, schedule, regularisation, views, "
    "unfrozen blocks. Or a Python file with a function space(hp).",
    ("paper", "extended"),
    "expected paper, extended, or a Python file with a function space(hp)",
)
_BACKBONE = flags.DEFINE_string(
    "backbone",
    "resnet152",
    "Name of the table in replication/learning/models.py or of keras.applications "
    "(default: resnet152).",
)
_WEIGHTS = shared.weights()
_OBJECTIVE = flags.DEFINE_enum(
    "objective",
    "val_macro_f1",
    ["val_macro_f1", "val_accuracy", "val_loss", "val_hsil_plus_sensitivity"],
    "What is optimised, on tune images (default: val_macro_f1).",
)
_PROTOCOL = shared.protocol(
    "clean (default): tune images choose, test images are not looked at. paper: as P5, scored on "
    "images that were trained on, stopped on training accuracy, BGR 0..255."
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
_SEARCH_DIR = path_flags.define(
    "search_dir",
    None,
    "Where the search is written (default: runs/search-<tuner>-<space>-<protocol>-<data>).",
    path_flags.NEW_FOLDER,
    otherwise="runs",
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    1,
    "Trials trained side by side on this machine, each on a GPU of its own where there are several "
    "(default: 1).",
    lower_bound=1,
)
_LEASE_SECONDS = flags.DEFINE_float(
    "lease_seconds",
    60.0,
    "A worker that is silent for so long is taken for dead, and its trial given to another "
    "(default: 60).",
    lower_bound=1.0,
)

_DRY_RUN = shared.dry_run("trials, epochs")

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(engine_flags)
flags.adopt_module_key_flags(audit_flags)
flags.adopt_module_key_flags(stage2_flags)
flags.adopt_module_key_flags(cluster_flags)

#: Random and Bayesian search have no end of their own.
_DEFAULT_TRIALS = 40
#: More are a mistake: a grid of a space that was not made for one.
_MOST_TRIALS = 10_000


def main(argv: list[str]) -> None:
    """Prepares features, shows what will be done, searches, and writes what was found."""
    _check_flags(argv)
    start = time.perf_counter()
    from finetune.search import place

    with contextlib.ExitStack() as stack:
        connected = cluster_flags.connected(not (_DRY_RUN.value or place.is_worker()))
        # Trials have workers of their own: those of --cluster go when features are there.
        _run(start, stack.enter_context(connected), stack.close)


def _run(start: float, client: "distributed.Client | None", release: Callable[[], object]) -> None:
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from finetune.search import (
        cluster,
        estimate,
        local_workers,
        oracles,
        place,
        scoring,
        steps,
        tuner,
    )
    from replication.drawing import pages

    with _what_is_finished_is_kept():
        if place.is_worker():
            local_workers.end_with_chief()
            # It prepares data, features and directory, which its workers share.
            cluster.wait_for_chief()
        policy = device_flags.policy()
        searched = _space()
        hyperparameters = searched.hyperparameters()
        plan = _plan(hyperparameters)
        if _DRY_RUN.value:
            _dry_run(searched, hyperparameters, plan, policy)
            return
        run, study = _prepared(searched, hyperparameters, policy, client)
        release()
        objective = scoring.objective(_OBJECTIVE.value)
        search_tuner = tuner.SearchTuner(
            oracles.build(
                _TUNER.value, hyperparameters, objective, seed=_SEED.value, **_search_options()
            ),
            study,
            run.path,
            lease_seconds=_LEASE_SECONDS.value,
        )
        if place.is_worker():
            search_tuner.search()
            return
        print(device_flags.words(policy))
        steps.print_space(searched, hyperparameters, plan, _EXECUTIONS.value)
        if not search_tuner.oracle.end_order:
            expected = estimate.estimate(study, plan)
            seconds = pages.duration(expected.seconds, digits=0)
            print(f"About {seconds} on one process: {expected.words}")
        _search(search_tuner, plan, run, hyperparameters)
        page = steps.publish(run, study, plan, name=_TUNER.value)
    print(f"\n{time.perf_counter() - start:.0f} s")
    print(f"Report: {page}")
    print(f"TensorBoard: tensorboard --logdir={run.path / 'logs'}")
    print(f"Train the best: python -m finetune.train --from_search={run.path}")


@contextlib.contextmanager
def _what_is_finished_is_kept() -> Iterator[None]:
    """Says so where a full disk, a lost chief or KerasTuner ends the search."""
    import keras_tuner

    try:
        yield
    except (PapError, BrokenPipeError):
        raise
    except (keras_tuner.errors.FatalError, OSError) as error:
        raise PapError(
            f"{error}; what is finished in {_search_dir()} is kept, the same command goes on"
        ) from error


def _base() -> "Tuning":
    from finetune.tuning import Tuning

    return Tuning(
        backbone=_BACKBONE.value.lower(),
        size=_SIZE.value,
        epochs=_MAX_EPOCHS.value,
        patience=_PATIENCE.value,
    )


def _space() -> "space.Space":
    from finetune import space

    return space.find(_SPACE.value, _base(), max_unfrozen_blocks=_MAX_UNFROZEN_BLOCKS.value)


def _search_options() -> dict[str, Any]:
    """Returns what plan and oracle depend on alike."""
    endless = _TUNER.value in ("random", "bayesian")
    return {
        "max_trials": _MAX_TRIALS.value or (_DEFAULT_TRIALS if endless else None),
        "max_epochs": _MAX_EPOCHS.value,
        "factor": _FACTOR.value,
    }


def _plan(hyperparameters: "keras_tuner.HyperParameters") -> "oracles.Plan":
    from finetune.search import oracles

    plan = oracles.plan(_TUNER.value, hyperparameters, **_search_options())
    if plan.trials > _MOST_TRIALS:
        raise PapError(
            f"--tuner={_TUNER.value} --space={_SPACE.value}: {plan.trials:,} trials; give "
            "--max_trials, or another --tuner"
        )
    return plan


def _dry_run(
    searched: "space.Space",
    hyperparameters: "keras_tuner.HyperParameters",
    plan: "oracles.Plan",
    policy: DevicePolicy,
) -> None:
    """Prints what the search would do: steps are measured on random features."""
    from finetune.search import estimate, scoring, steps
    from replication.runs import dry_run

    source = dry_run.at_hand(searched.base.backbone, _WEIGHTS.value)
    spec = _feature_spec(searched, hyperparameters, policy, source)
    builder = stage2_flags.builder()
    images = dry_run.images(builder, stage2_flags.manual_dir())
    assigned = scoring.assign_roles(images.index, _PROTOCOL.value)
    extraction = dry_run.extraction(spec, images.index, policy)
    study = _study(searched, spec, extraction.store, assigned, builder, policy)
    steps.print_space(searched, hyperparameters, plan, _EXECUTIONS.value)
    expected = estimate.estimate(study, plan)
    fits = dry_run.count(plan.trials * _EXECUTIONS.value, "fit")
    lines = [
        f"Plan: {fits}, at most {plan.epochs * _EXECUTIONS.value:,} epochs, about "
        f"{dry_run.about(extraction.seconds + expected.seconds)} on one process (features "
        f"{dry_run.about(extraction.seconds)}; {expected.words})"
    ]
    head = extraction.store.input_size * 64
    scored = len(assigned.tune) + len(assigned.test)
    parts = {
        "images": images.bytes_to_prepare,
        "weights": dry_run.download_bytes(searched.base.backbone, _WEIGHTS.value),
        "features": extraction.store.features.nbytes,
        "trials": plan.trials * _EXECUTIONS.value * dry_run.fit_bytes(head, scored),
    }
    dry_run.report(_search_dir(), lines, parts)


def _feature_spec(
    searched: "space.Space",
    hyperparameters: "keras_tuner.HyperParameters",
    policy: DevicePolicy,
    source: str,
) -> "features.FeatureSpec":
    from replication.learning import features

    return features.feature_spec(
        searched.base.backbone,
        source=source,
        protocol=_PROTOCOL.value,
        size=searched.base.size,
        views=searched.views(hyperparameters),
        precision=policy.precision,
        engine=engine_flags.engine(),
    )


def _study(
    searched: "space.Space",
    spec: "features.FeatureSpec",
    store: "features.FeatureStore",
    assigned: "roles.Roles",
    builder: "tfds.core.DatasetBuilder",
    policy: DevicePolicy,
) -> "tuner.Study":
    from finetune.search import tuner
    from replication.runs import fitting

    return tuner.Study(
        space=searched,
        spec=spec,
        store=store,
        assigned=assigned,
        images=lambda: fitting.images(builder, spec.size, spec.resize),
        protocol=_PROTOCOL.value,
        objective=_OBJECTIVE.value,
        executions=_EXECUTIONS.value,
        seed=_SEED.value,
        policy=policy,
    )


def _prepared(
    searched: "space.Space",
    hyperparameters: "keras_tuner.HyperParameters",
    policy: DevicePolicy,
    client: "distributed.Client | None",
) -> "tuple[RunDirectory, tuner.Study]":
    """Prepares images, roles, features and directory; a chief, or who is alone, describes them."""
    from finetune.search import place, scoring, steps
    from replication.learning import features
    from replication.runs import description
    from tfds_pap import leak_audit, pipeline, preparing

    spec = _feature_spec(searched, hyperparameters, policy, _WEIGHTS.value)
    builder = stage2_flags.prepare()
    index = pipeline.read_index(builder)
    audits = {
        builder.name: leak_audit.audit_builder(builder, effort=audit_flags.effort(), client=client)
    }
    blocks = audit_flags.blocks(audits).get(builder.name)
    assigned = scoring.assign_roles(index, _PROTOCOL.value, blocks)
    scoring.check_objective(_OBJECTIVE.value, index, assigned.tune)
    run = RunDirectory.open(
        _search_dir(),
        {
            **_identity(),
            "resolved space": searched.digest(hyperparameters),
            **spec.key(preparing.identity(builder)),
            **device_flags.identity(policy),
            "engine": engine_flags.engine(),
        },
        flag="search_dir",
        alone=not place.is_worker(),
    )
    if not place.is_worker():
        description.audit(run, [builder], audit_flags.effort(), audit_flags.note)
        steps.describe(
            run,
            builder,
            policy,
            assigned,
            untrained=spec.weights.path is None,
            protocol=_PROTOCOL.value,
            images=stage2_flags.images(),
        )
    store = features.extract_features(
        builder, spec, stage2_flags.features_dir(), policy=policy, client=client
    )
    return run, _study(searched, spec, store, assigned, builder, policy)


def _identity() -> dict[str, object]:
    """Returns the flags that results depend on."""
    return {
        "tuner": _TUNER.value,
        "space": Path(_SPACE.value).name,
        "objective": _OBJECTIVE.value,
        "protocol": _PROTOCOL.value,
        "max_epochs": _MAX_EPOCHS.value,
        "patience": _PATIENCE.value,
        "factor": _FACTOR.value,
        "executions_per_trial": _EXECUTIONS.value,
        "seed": _SEED.value,
        "source": stage2_flags.source(),
        **audit_flags.identity(),
    }


def _search(
    search_tuner: "tuner.SearchTuner",
    plan: "oracles.Plan",
    run: RunDirectory,
    hyperparameters: "keras_tuner.HyperParameters",
) -> None:
    """Runs every trial: here, in workers of this machine, or in those of a cluster."""
    from finetune.search import local_workers, place, progress, tensorboard

    tensorboard.write_columns(run.path / "logs", hyperparameters, _OBJECTIVE.value)
    with progress.Progress(search_tuner.oracle, plan) as display:
        if place.is_chief():
            search_tuner.serve(display.update)
        elif _WORKERS.value > 1:
            with local_workers.LocalWorkers(_WORKERS.value, run.path) as workers:

                def tick() -> None:
                    display.update()
                    workers.check()

                search_tuner.serve(tick)
        else:
            search_tuner.search_alone(display.update)


def _check_flags(argv: list[str]) -> None:
    commands.no_arguments(argv)
    if _TUNER.value == "hyperband" and _MAX_TRIALS.value is not None:
        raise app.UsageError(
            "--max_trials: hyperband has its own number of trials, which --max_epochs and "
            "--factor decide"
        )
    stage2_flags.images()
    engine_flags.engine()
    if 0 < _SIZE.value < 32:
        raise app.UsageError(f"--size={_SIZE.value}: expected 0, or 32 or more pixels")
    folder_flags.announce()


def _search_dir() -> Path:
    if _SEARCH_DIR.value:
        return Path(_SEARCH_DIR.value)
    name = (
        f"search-{_TUNER.value}-{Path(_SPACE.value).stem}-{_PROTOCOL.value}-{stage2_flags.name()}"
    )
    return Path("runs") / name


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
