"""The paper's grid of 162 fits: as the authors ran it, and as finetune.search does.

    python benchmarks/search.py                                   # ResNet152, 400 phantoms
    python benchmarks/search.py --images=4000 --tuners=grid       # the paper's number of images

The authors ran every image through the frozen backbone in every epoch of every fit. That is
measured for one epoch at each batch size, on a few images, and extrapolated to the epochs that each
of the 162 fits really ran here. The searches are run in full; their times hold the extraction of
the features. Phantoms and untrained weights cost what others cost.
"""

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from tfds_pap import commands

_BACKBONE = flags.DEFINE_string("backbone", "resnet152", "Backbone (default: resnet152).")
_IMAGES = flags.DEFINE_integer(
    "images", 400, "Images in the train folder, a fifth of which tunes (default: 400).", 40
)
_TUNERS = flags.DEFINE_list(
    "tuners",
    ["grid", "random", "bayesian", "hyperband"],
    "Searches; grid comes first, as it says how good the authors' choice is (default: all four).",
)
_MAX_TRIALS = flags.DEFINE_integer(
    "max_trials", 40, "Of random and bayesian (default: 40).", lower_bound=1
)
_MEASURED = flags.DEFINE_integer(
    "measured_images", 64, "Images of the measured epochs (default: 64).", lower_bound=64
)
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Epochs at most (default: the paper's 30).", 1)


def main(argv: list[str]) -> None:
    """Measures the authors' way, runs the searches, prints one table."""
    del argv
    commands.prepare_tensorflow()
    import numpy as np

    from finetune import space
    from finetune.search import collect, oracles, scoring, tuner
    from finetune.tuning import Tuning
    from replication.learning import features
    from tfds_pap import phantom_set, pipeline, preparing

    policy = device.configure()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        counts = {"train": _IMAGES.value // 4, "validation": 1}
        phantom_set.write_tree(place, db3={}, db4=counts)
        builder = preparing.prepare("pap_db4", "original", place, place / "tfds")
        base = Tuning(backbone=_BACKBONE.value, epochs=_EPOCHS.value, patience=5)
        searched = space.find("paper", base)
        spec = features.feature_spec(base.backbone, source="none", precision=policy.precision)
        start = time.perf_counter()
        store = features.extract_features(
            builder, spec, place / "features", policy=policy, batch_size=16
        )
        extraction = time.perf_counter() - start
        assigned = scoring.assign_roles(store.index, "clean")
        study = tuner.Study(
            space=searched,
            spec=spec,
            store=store,
            assigned=assigned,
            images=lambda: pipeline.load_images(builder, spec.size, spec.resize),
            protocol="clean",
            objective="val_macro_f1",
            executions=1,
            seed=0,
            policy=policy,
        )
        print(
            f"{base.backbone}, {len(assigned.train)} images train and {len(assigned.tune)} tune at "
            f"{spec.size} px; features {extraction:.0f} s"
        )

        authors = _authors_way(study)
        for size, (begin, train, score) in authors.items():
            print(
                f"frozen backbone inside the fit, batch {size}: {begin:.0f} s to start, "
                f"{1000 * train:.0f} ms an image and epoch, {1000 * score:.0f} ms to score one",
                flush=True,
            )

        print(f"\n{'':24s}{'fits':>6s}{'epochs':>8s}{'time':>10s}{'ratio':>8s}{'as good':>14s}")
        target = None
        hp = searched.hyperparameters()
        for name in _TUNERS.value:
            limit = _MAX_TRIALS.value if name in ("random", "bayesian") else None
            oracle = oracles.build(
                name,
                hp.copy(),
                scoring.objective(study.objective),
                seed=1,
                max_trials=limit,
                max_epochs=_EPOCHS.value,
                factor=3,
            )
            search = tuner.SearchTuner(oracle, study, place / name, lease_seconds=60)
            ends: list[float] = []
            start = time.perf_counter()

            def note(o: Any = oracle, e: list[float] = ends, s: float = start) -> None:
                if len(o.end_order) > len(e):
                    e.append(time.perf_counter() - s)

            search.search_alone(note)
            found = collect.read_trials(place / name)
            seconds = extraction + time.perf_counter() - start
            epochs = sum(_own_epochs(trial, found) for trial in found)
            if name == "grid":
                choice = next(t for t in found if dict(t.values) == space.PAPER_CHOICE)
                target = choice.score
                costs = np.cumsum([_cost(t, authors, assigned) for t in found])
                good = next(n for n, trial in enumerate(found) if trial.score >= target)
                whole = costs[-1]
                row = ("grid as the authors ran", len(found), epochs, whole, 1.0, costs[good])
                _print(*row, estimated=True)
            first = None
            if target is not None:
                reached = [e for t, e in zip(found, ends, strict=True) if t.score >= target]
                first = extraction + reached[0] if reached else None
            ratio = whole / seconds if target is not None else math.nan
            _print(name, len(found), epochs, seconds, ratio, first)
        if target is not None:
            print(
                f"\nRatio: time of the authors' grid over this one. As good: until a model reached "
                f"the {target:.4f} of the authors' choice (macro F1 on tune images). Extrapolated: "
                "~."
            )


def _authors_way(study: Any) -> dict[int, tuple[float, float, float]]:
    """Seconds to start a fit, an image trained and an image scored, for each batch size."""
    import numpy as np

    from replication.learning import models

    images = study.images()
    pixels = np.asarray(images.pixels)[study.assigned.train[: _MEASURED.value]].astype(np.float32)
    labels = images.index.labels[study.assigned.train[: _MEASURED.value]]
    found = {}
    for size in (16, 32, 64):
        start = time.perf_counter()
        extractor = study.spec.extractor()
        head = models.head(extractor.output_shape[-1], 4)
        model = models.classifier(extractor, head)
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(pixels, labels, batch_size=size, epochs=1, verbose=0)
        model.predict(pixels, batch_size=size, verbose=0)
        first = time.perf_counter() - start
        start = time.perf_counter()
        model.fit(pixels, labels, batch_size=size, epochs=1, verbose=0)
        train = time.perf_counter() - start
        start = time.perf_counter()
        model.predict(pixels, batch_size=size, verbose=0)
        score = time.perf_counter() - start
        found[size] = (
            max(first - train - score, 0.0),
            train / len(pixels),
            score / len(pixels),
        )
    return found


def _cost(trial: Any, authors: dict[int, tuple[float, float, float]], assigned: Any) -> float:
    """Seconds of one of the authors' fits."""
    begin, train, score = authors[trial.values["batch_size"]]
    return begin + trial.epochs * (train * len(assigned.train) + score * len(assigned.tune))


def _own_epochs(trial: Any, trials: list[Any]) -> int:
    """Epochs that a trial trained itself, without those that it inherited."""
    before = {other.trial_id: other.epochs for other in trials}
    return trial.epochs - before.get(trial.inherited, 0)


def _print(
    name: str,
    fits: int,
    epochs: int,
    seconds: float,
    ratio: float,
    first: float | None,
    *,
    estimated: bool = False,
) -> None:
    mark = "~" if estimated else ""
    reached = "never" if first is None else f"{mark}{first:.0f} s"
    print(
        f"{name:24s}{fits:6d}{epochs:8d}{f'{mark}{seconds:.0f} s':>10s}{ratio:8.1f}{reached:>14s}",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
