"""Runs whose fits were never trained: plausible predictions, histories and pixels."""

import numpy as np

from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

BANNER = "Every image of this run is a drawing, not a cell: the figures are no replication."
CLASSES = {1: STAGE1_CLASSES, 2: STAGE2_CLASSES}


def fake_predictions(stage, seed, images=160, absent=(), skill=2.2):
    """Plausible ones: neighbours in severity are mistaken for each other most."""
    names = CLASSES[stage]
    rng = np.random.default_rng(stage)
    labels = rng.choice([c for c, name in enumerate(names) if name not in absent], size=images)
    rng = np.random.default_rng([stage, seed])
    distance = np.abs(labels[:, None] - np.arange(len(names)))
    logits = -skill * distance + rng.gumbel(0, 1.1, size=(images, len(names)))
    odds = np.exp(logits)
    return Predictions(
        [f"validation_{c + 1}_{i}.jpg" for i, c in enumerate(labels)],
        [""] * images,
        ["test" if i % 5 else "tune" for i in range(images)],
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        names,
    )


def fake_history(stage, protocol, epochs, seed):
    rng = np.random.default_rng([stage, seed])
    history = []
    for e in range(epochs):
        left = np.exp(-e / (epochs / 5))
        logs = {
            "loss": 0.08 + 1.2 * left + 0.02 * rng.random(),
            "accuracy": 0.98 - 0.6 * left - 0.01 * rng.random(),
        }
        if (stage, protocol) != (1, "paper"):
            logs["val_loss"] = 0.3 + 1.1 * left + 0.3 * e / epochs + 0.06 * rng.random()
            logs["val_accuracy"] = 0.9 - 0.55 * left - 0.04 * rng.random()
        history.append(logs)
    return history


def add_fit(run, stage, protocol, seed, predictions, epochs=12):
    directory = run.fit_directory(stage, protocol, seed)
    directory.mkdir(parents=True)
    predictions.write(directory / "predictions.csv")
    history = fake_history(stage, protocol, epochs, seed)
    tuned = "val_loss" in history[0]
    best = min(range(epochs), key=lambda e: history[e]["val_loss"]) if tuned else None
    names = CLASSES[stage]
    roles = {"train": 3200, "tune": 800, "test": 640} if tuned else {"train": 1600, "test": 400}
    info = {
        "stage": stage,
        "protocol": protocol,
        "seed": seed,
        "name": {1: "stage-1 CNN (P1)", 2: "stage-2 original CNN (P2)"}[stage],
        "parameters": {1: 7060, 2: 131108}[stage],
        "size": {1: 20, 2: 250}[stage],
        "resize": {1: "nearest", 2: "bilinear"}[stage],
        "class_names": list(names),
        "counts": {role: dict.fromkeys(names, n // len(names)) for role, n in roles.items()},
        "history": history,
        "epochs_run": epochs,
        "best_epoch": best,
        "kept": "best" if protocol == "clean" else "last",
        "seconds": 84.2,
        "images_per_second": 1520.4,
    }
    files.write_json(directory / "fit.json", info)


def manifest_values():
    def data(names, train, test, paper_tune):
        return {
            "fingerprint": "sha256:9f2c4be07d1a",
            "notes": ["one copy of the tree has 196 images in validation/1"],
            "counts": {
                "train": dict.fromkeys(names, train),
                "validation": dict.fromkeys(names, test),
            },
            "roles": {
                protocol: {
                    "train": dict.fromkeys(names, train - tune),
                    "tune": dict.fromkeys(names, tune) if tune else {},
                    "test": dict.fromkeys(names, test),
                }
                for protocol, tune in (("paper", paper_tune), ("clean", train // 5))
            },
        }

    return {
        "source": "phantom",
        "announcement": BANNER,
        "environment": {
            "command": "python -m replication.run --epochs=12 --seeds=3 --run_dir=out",
            "time": "2025-01-02T03:04:05+00:00",
            "python": "3.12.1",
            "versions": {"tensorflow": "2.21.0", "keras": "3.15.0"},
            "git_commit": "0123456789ab",
            "device": "CPU (8 cores)",
            "precision": "float32",
            "xla": False,
        },
        "data": {
            # As JSON may bring them: the page puts them in order of severity.
            "pap_db3": data(("cell", "background"), 800, 200, 0),
            "pap_db4": data(("HSIL", "LSIL", "NILM", "SCC"), 1000, 200, 200),
        },
        "durations": {"data": 12.25, "stage 1": 301.0, "stage 2": 9000.0},
        "peak_memory_mib": 2210.4,
    }


def make_full(path, seeds=3, images=160, epochs=12):
    run = RunDirectory.open(path, {"source": "phantom", "epochs": epochs, "batch_size": 32})
    run.update_manifest(**manifest_values())
    for stage in (1, 2):
        for protocol, skill in (("paper", 2.2), ("clean", 2.8)):
            for seed in range(seeds):
                p = fake_predictions(stage, seed, images, skill=skill + 2 * (stage == 1))
                add_fit(run, stage, protocol, seed, p, epochs)
    return run


def fake_pixels(stage, ids):
    """Something like a cell: a dark nucleus in pale cytoplasm."""
    side = {1: 20, 2: 250}[stage]
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    pictures = []
    for image in ids:
        rng = np.random.default_rng(list(image.encode()))
        dx, dy, r = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.4)
        picture = np.full((side, side, 3), (236, 232, 238), float)
        picture[np.hypot(x - dx, 1.3 * (y - dy)) < 0.8] = (178, 205, 214)
        picture[np.hypot(x - dx, y - dy) < r] = (84, 60, 120)
        pictures.append((picture + rng.normal(0, 5, picture.shape)).clip(0, 255).astype(np.uint8))
    return pictures
