"""How the scaling of its input decides whether the original stage-2 CNN leaves chance.

    python benchmarks/input_scaling.py --epochs=7

Trains P2's network on phantoms (190 px, clean roles, flips, batch 32) with three scalings.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from tfds_pap import commands

_EPOCHS = flags.DEFINE_integer("epochs", 7, "Epochs of each training (default: 7).")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of each training (default: 0).")
_SCALINGS = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}


def main(argv: list[str]) -> None:
    """Trains once for each scaling and prints the tune accuracy of every epoch."""
    del argv
    commands.prepare_tensorflow()
    import keras

    from replication.learning import models, recipes, training
    from tfds_pap import pipeline, preparing, roles

    policy = device.configure()
    size = recipes.PHANTOM_SIZE
    store = pipeline.load_images(preparing.prepare(recipes.DATASETS[2], "phantom"), size)
    assigned = roles.assign_roles(store.index, "clean", stage=2)
    print(machine.describe())
    for name, (scale, offset) in _SCALINGS.items():

        def build(size: int, scale: float = scale, offset: float = offset) -> keras.Model:
            config = models.stage2_cnn("clean", size).get_config()
            for layer in config["layers"]:
                if layer["class_name"] == "Rescaling":
                    layer["config"].update(scale=scale, offset=offset)
            return keras.Model.from_config(config)

        recipe = dataclasses.replace(
            recipes.RECIPES["clean", 2], build=build, size=size, epochs=_EPOCHS.value
        )
        with tempfile.TemporaryDirectory() as folder:
            _, outcome = training.fit(
                recipe,
                store,
                assigned,
                seed=_SEED.value,
                policy=policy,
                directory=Path(folder),
                label=name,
            )
        accuracies = " ".join(f"{epoch['val_accuracy']:.2f}" for epoch in outcome["history"])
        print(f"RGB in {name:8s} tune accuracy by epoch: {accuracies}", flush=True)


if __name__ == "__main__":
    app.run(main)
