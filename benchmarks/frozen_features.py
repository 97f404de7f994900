"""Training a head behind a frozen backbone: the notebooks' way beside features computed once.

    python benchmarks/frozen_features.py                       # 50 epochs, a small and a large one
    python benchmarks/frozen_features.py --backbones=resnet152 --images=64

Both ways train the same head on the same phantoms in the same order (untrained weights cost the
same), and both times hold everything from building the model on. Prints the ratio by epochs.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from tfds_pap import commands

_BACKBONES = flags.DEFINE_list(
    "backbones", ["mobilenetv2", "resnet50"], "Backbones (default: mobilenetv2,resnet50)."
)
_IMAGES = flags.DEFINE_integer("images", 128, "Training images (default: 128).", lower_bound=16)
_EPOCHS = flags.DEFINE_integer("epochs", 50, "Epochs of both ways (default: the paper's 50).")
_SHOWN = (1, 2, 5, 10, 20, 50, 100)


def main(argv: list[str]) -> None:
    """Times both ways for each backbone."""
    del argv
    commands.prepare_tensorflow()
    import keras
    import numpy as np

    from replication.learning import (
        features,
        heads,
        knobs,
        models,
        training,
        training_state,
        weights,
    )
    from tfds_pap import phantom_set, pipeline, preparing, roles

    class Clock(keras.callbacks.Callback):
        """Seconds since the start at the end of each epoch."""

        def __init__(self, start: float) -> None:
            super().__init__()
            self.seconds = []
            self._start = start

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            self.seconds.append(time.perf_counter() - self._start)

    policy = device.configure()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        counts = {"train": _IMAGES.value // 4, "validation": 1}
        phantom_set.write_tree(place, db3={}, db4=counts)
        builder = preparing.prepare("pap_db4", "original", place, place / "tfds")
        index = pipeline.read_index(builder)
        everything = np.flatnonzero(index.splits == "train")
        assigned = roles.Roles(everything, everything[:0], everything[:0])
        recipe = knobs.HeadRecipe(epochs=_EPOCHS.value)
        for name in _BACKBONES.value:
            entry = models.backbone(name)
            spec = features.FeatureSpec(
                name, weights.find(name, weights.NONE), entry.size, entry.preprocessing
            )
            images = pipeline.load_images(builder, spec.size)

            start = time.perf_counter()
            store = features.extract_features(
                builder, spec, place / name, policy=policy, batch_size=16
            )
            on_features = heads.training_recipe(recipe, store, "clean", 0, tuned=False)
            once = Clock(start)
            options = {"seed": 0, "policy": policy, "label": None}
            training.fit(
                on_features, store, assigned, directory=place / "a", callbacks=(once,), **options
            )

            start = time.perf_counter()
            extractor = spec.extractor()
            head = on_features.build
            on_images = dataclasses.replace(
                on_features,
                build=lambda size, e=extractor, h=head: models.classifier(e, h(e.output_shape[-1])),
            )
            every = Clock(start)
            training.fit(
                on_images, images, assigned, directory=place / "b", callbacks=(every,), **options
            )

            print(f"\n{name}, {len(everything)} images at {spec.size} px, batch 16")
            print(f"{'epochs':>8s}{'every epoch':>14s}{'features once':>16s}{'ratio':>8s}")
            for epochs in sorted({*_SHOWN, _EPOCHS.value}):
                if epochs <= _EPOCHS.value:
                    slow, fast = every.seconds[epochs - 1], once.seconds[epochs - 1]
                    print(f"{epochs:8d}{slow:12.1f} s{fast:14.1f} s{slow / fast:8.1f}", flush=True)
            for folder in (place / "a", place / "b"):
                training_state.remove_state(folder)


if __name__ == "__main__":
    app.run(main)
