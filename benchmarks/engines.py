"""ONNX Runtime beside TensorFlow through the project itself: frozen features, and stage 2.

    python benchmarks/engines.py --csv=results/engines.csv

Features are the forward pass that `extract_features` makes, on batches of its pipeline; stage 2 is
that of a scan, reading and resizing included: there ONNX Runtime loses, and no command offers it.
Weights are random, which cost the same, and images are drawn. Both engines run in turns in one
process; what each costs once (tracing; export, loading and self-check) stands for itself. The
ratio to TensorFlow is the median over pairs, of processor time, which others on the machine
disturb least.
"""

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from tfds_pap import commands

_BACKBONES = flags.DEFINE_list(
    "backbones", ["mobilenetv2", "resnet50"], "Backbones (default: mobilenetv2,resnet50)."
)
_IMAGES = flags.DEFINE_integer("images", 64, "Images a pass (default: 64).", lower_bound=4)
_PAIRS = flags.DEFINE_integer("pairs", 5, "Passes of each engine (default: 5).", lower_bound=1)
_CSV = flags.DEFINE_string("csv", None, "Also add the rows to this CSV (default: none).")
_BESIDE = flags.DEFINE_string(
    "beside", "nothing", "What else ran on the machine, in words (default: nothing)."
)

ENGINES = ("tensorflow", "onnx")


def main(argv: list[str]) -> None:
    """Times each work by both engines, prints the table, adds it to the CSV."""
    del argv
    commands.prepare_tensorflow()
    works = [functools.partial(_features, name) for name in _BACKBONES.value]
    print("| work | engine | once, s | images a processor s | images a s | ratio | differs by |")
    print("|---|---|---|---|---|---|---|")
    for work in (_stage2, *works):
        rows = work()
        for row in rows:
            values = [str(value) for value in row.values()]
            print("| " + " | ".join(values[:7]) + " |", flush=True)
        machine.add_rows(_CSV.value, rows)
    print(machine.describe())


class _Seconds:
    """Processor and wall seconds of a block."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0


@contextlib.contextmanager
def _clocked() -> Iterator[_Seconds]:
    seconds, processor, wall = _Seconds(), time.process_time(), time.perf_counter()
    yield seconds
    seconds.processor = time.process_time() - processor
    seconds.wall = time.perf_counter() - wall


def _rows(
    work: str, images: int, prepare: Callable[[str], Callable], differs: str
) -> list[dict[str, object]]:
    """Prepares each engine and runs it once, then runs both in turns.

    Args:
        work: In words.
        images: Of a pass.
        prepare: From an engine to a function that makes a pass and returns its outputs.
        differs: Whether differences are "absolute", or "relative" to the largest output.
    """
    import numpy as np

    once, outputs, passes = {}, {}, {}
    for engine in ENGINES:
        with _clocked() as once[engine]:
            passes[engine] = prepare(engine)
            outputs[engine] = passes[engine]()
    spent: dict[str, list[_Seconds]] = {engine: [] for engine in ENGINES}
    for number in range(_PAIRS.value):
        for engine in ENGINES[:: -1 if number % 2 else 1]:
            with _clocked() as seconds:
                passes[engine]()
            spent[engine].append(seconds)
    processor = {name: np.array([one.processor for one in spent[name]]) for name in ENGINES}
    wall = {name: np.array([one.wall for one in spent[name]]) for name in ENGINES}
    difference = {"tensorflow": 0.0, "onnx": np.abs(outputs["onnx"] - outputs["tensorflow"]).max()}
    scale = np.abs(outputs["tensorflow"]).max() if differs == "relative" else 1.0
    return [
        {
            "work": work,
            "engine": engine,
            "once_processor_seconds": round(
                max(0.0, once[engine].processor - np.median(processor[engine])), 1
            ),
            "images_a_processor_second": round(images / np.median(processor[engine]), 1),
            "images_a_second": round(images / np.median(wall[engine]), 1),
            "engine/tensorflow": round(np.median(processor["tensorflow"] / processor[engine]), 2),
            "largest_difference": f"{difference[engine] / scale:.1e}",
            "difference_is": differs,
            "images": images,
            "pairs": _PAIRS.value,
            "beside": _BESIDE.value,
        }
        for engine in ENGINES
    ]


def _features(name: str) -> list[dict[str, object]]:
    """The forward pass that `extract_features` makes, on batches of its pipeline."""
    import numpy as np

    from replication.learning import features
    from tfds_pap import phantom_set, pipeline, preparing

    policy = device.configure(precision="float32")
    base = features.feature_spec(name, source="none")
    extractor = base.extractor()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        phantom_set.write_tree(place, db3={}, db4={"train": _IMAGES.value // 4, "validation": 1})
        builder = preparing.prepare("pap_db4", "original", place, place / "tfds")
        store = pipeline.load_images(builder, base.size, base.resize)
        rows = np.flatnonzero(store.index.splits == "train")

        def prepare(engine: str) -> Callable[[], np.ndarray]:
            forward = features.forward(extractor, policy, len(rows), engine)
            return lambda: np.concatenate(
                [np.asarray(forward(pixels)) for pixels, _ in store.batches(rows, 32)]
            )

        return _rows(f"features of {name}", len(rows), prepare, "relative")


def _stage2() -> list[dict[str, object]]:
    """The stage-2 CNN of the papers names ROIs of a drawn field, in one thread."""
    import keras
    import numpy as np

    from replication.fields.find.stages import Stage2
    from replication.fields.read.field import ArrayField
    from replication.learning import models
    from replication.measures import decisions
    from replication.runs import engines
    from tfds_pap import phantom
    from tfds_pap.taxonomy import STAGE2_CLASSES

    keras.utils.set_random_seed(0)
    network = models.stage2_cnn("clean")
    field = ArrayField("drawn", phantom.draw_field(0, width=2048, height=1536, cells=150)[0])
    places = np.linspace(0, 1380, _IMAGES.value).astype(int)
    decision = decisions.Decision(STAGE2_CLASSES, None, None)

    def prepare(engine: str) -> Callable[[], np.ndarray]:
        stage2 = Stage2(network, "bilinear", decision)
        # Each thread of a scan names ROIs of its own.
        forward = engines.forward(network, engine, threads=1)
        return lambda: np.concatenate(
            [forward(batch) for batch in stage2.batches(field, places, places[::-1])]
        )

    return _rows("stage 2 of a scan", _IMAGES.value, prepare, "absolute")


if __name__ == "__main__":
    app.run(main)
