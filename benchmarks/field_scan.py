"""How fast a field is read: the authors' way, batched crops, and the two dense forms, in one run.

    python benchmarks/field_scan.py
    python benchmarks/field_scan.py --growth=1,4,16,64

The field is drawn, 2048 x 1536 px, and read at a stride of 25 px with the networks of the papers
(random weights: the time does not depend on them, agreement is told for trained ones with --run).
Decoding is not timed, as the fields are in memory. Memory is measured in a process of its own for
each way, and is what that process needs beyond TensorFlow and the field.
"""

import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from replication.runs.directory import RunDirectory
from tfds_pap import commands

_RUN = flags.DEFINE_string(
    "run", None, "Run of trained models (default: none, the papers' networks with random weights)."
)
_FIELD = flags.DEFINE_string("field", None, "Field to read (default: a drawn one).")
_NAIVE_ROIS = flags.DEFINE_integer(
    "naive_rois", 300, "ROIs that the authors' way is timed on, then extrapolated (default: 300)."
)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed repeats of the other ways (default: 9).")
_GROWTH = flags.DEFINE_list(
    "growth", None, "Megapixels of fields, to show how the cost grows (default: not shown)."
)
_STRIDE, _ROI = 25, 150


def main(argv: list[str]) -> None:
    """Times every way of stage 1, then both stages; prints tables."""
    del argv
    commands.prepare_tensorflow()
    if _GROWTH.value:
        _growth([float(size) for size in _GROWTH.value])
    else:
        _ways()
    print(machine.describe())


def _field():
    """The field that is read, uint8 RGB."""
    import cv2

    from tfds_pap import phantom

    if _FIELD.value:
        return cv2.imread(_FIELD.value)[..., ::-1].copy()
    return phantom.draw_field(0, width=2048, height=1536, cells=150)[0]


def _networks():
    """Stage 1 and 2 of the papers, and how their images are resized."""
    import keras

    from replication.learning import models
    from replication.runs import results

    if _RUN.value:
        fits = results.choose_fits(RunDirectory(Path(_RUN.value)), "clean")
        return {
            stage: (keras.saving.load_model(fit.model_path, compile=False), fit.info["resize"])
            for stage, fit in fits.items()
        }
    keras.utils.set_random_seed(0)
    return {1: (models.stage1_cnn(), "bilinear"), 2: (models.stage2_cnn("clean"), "bilinear")}


def _way(name: str) -> Callable:
    """Returns a function from a field to the scores of its ROIs, in one of the four ways."""
    import cv2
    import numpy as np

    from replication.fields.find.dense import Stage1
    from replication.fields.find.lattice import Lattice

    model, resize = _networks()[1]
    size = model.inputs[0].shape[1]
    if name in ("exact", "fast"):
        return Stage1(model, resize, stride=_STRIDE, method=name).scores
    method = {"nearest": cv2.INTER_NEAREST_EXACT, "bilinear": cv2.INTER_LINEAR}[resize]

    def crops(field):
        lattice = Lattice(field.shape[1], field.shape[0], _ROI, _STRIDE)
        for row in range(lattice.rows):
            for column in range(lattice.columns):
                top, left = row * _STRIDE, column * _STRIDE
                yield cv2.resize(
                    field[top : top + _ROI, left : left + _ROI], (size, size), interpolation=method
                )

    def batched(field):
        batch = np.stack(list(crops(field))).astype(np.float32)
        return model.predict(batch, batch_size=len(batch), verbose=0)[:, 1]

    def naive(field):
        found = []
        for number, crop in enumerate(crops(field)):
            if number == _NAIVE_ROIS.value:
                break
            found.append(model.predict(crop[None].astype(np.float32), verbose=0)[0, 1])
        return np.array(found)

    return {"naive": naive, "batched": batched}[name]


_WAYS = {
    "naive": "the authors' way: crop, cv2.resize, model.predict per ROI",
    "batched": "crops by cv2.resize, one batch, model.predict",
    "exact": "dense, exact",
    "fast": "dense, one phase",
}


def _ways() -> None:
    import numpy as np

    from replication.fields.find.lattice import Lattice

    field = _field()
    rois = Lattice(field.shape[1], field.shape[0], _ROI, _STRIDE).rois
    seconds, scores = {}, {}
    for name in _WAYS:
        way = _way(name)
        scores[name] = way(field).reshape(-1)
        times = []
        for _ in range(1 if name == "naive" else _REPEATS.value):
            start = time.perf_counter()
            way(field)
            times.append(time.perf_counter() - start)
        seconds[name] = sorted(times)[len(times) // 2]
    done = min(_NAIVE_ROIS.value, rois)
    seconds["naive"] *= rois / done
    memory = {name: _memory_of(name) for name in _WAYS}
    height, width = field.shape[:2]
    print(f"Stage 1, field of {width} x {height} px, {rois} ROIs at a stride of {_STRIDE} px;")
    print(f"median of {_REPEATS.value}; the authors' way on {done} ROIs, extrapolated to all.\n")
    print(
        "| way | seconds | times the authors' | times batched | peak MiB | differs by | changed |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, words in _WAYS.items():
        there = len(scores[name])
        differs = np.abs(scores[name] - scores["batched"][:there]).max()
        changed = ((scores[name] >= 0.5) != (scores["batched"][:there] >= 0.5)).sum()
        print(
            f"| {words} | {seconds[name]:.4f} | {seconds['naive'] / seconds[name]:,.0f} | "
            f"{seconds['batched'] / seconds[name]:.1f} | {memory[name]:.0f} | {differs:.2g} | "
            f"{changed} of {there} |"
        )
    print(
        "\nDiffers by: largest difference in probability from the batched crops, whose cv2.resize"
    )
    print("rounds halves up where TensorFlow rounds them to even; changed: decisions at 0.5.")
    own = _way_of_single_rois()(field).reshape(-1)
    print(
        f"Against single ROIs resized as in training: exact "
        f"{np.abs(scores['exact'] - own).max():.2g}, fast "
        f"{np.abs(scores['fast'] - own).max():.2g} with "
        f"{((scores['fast'] >= 0.5) != (own >= 0.5)).sum()} of {rois} decisions changed."
    )


def _way_of_single_rois() -> Callable:
    from replication.fields.find.dense import Stage1

    model, resize = _networks()[1]
    return Stage1(model, resize, stride=_STRIDE, method="crops").scores


def _memory_of(name: str) -> float:
    """Peak memory in MiB that a way needs, beyond what the process held before it."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, name, list(sys.argv)).result()


def _peak(name: str, argv: list[str]) -> float:
    flags.FLAGS(argv)
    commands.prepare_tensorflow()
    way, field = _way(name), _field()
    # The first ROIs bring in TensorFlow's own buffers.
    way(field[:_ROI, :_ROI])
    # Linux alone forgets a peak; what importing TensorFlow took would hide the rest.
    Path("/proc/self/clear_refs").write_text("5")
    before = device.peak_memory_mib()
    way(field)
    return device.peak_memory_mib() - before


def _growth(megapixels: list[float]) -> None:
    import numpy as np

    from replication.fields.find import scanner
    from replication.fields.read.field import ArrayField

    tile, stages, workers = _field(), _stages(), os.cpu_count() or 1
    threshold = 0.5 if _RUN.value else float(np.quantile(stages.stage1.scores(tile), 0.9))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def scan(pixels: np.ndarray) -> tuple[scanner.FieldScan, float]:
            start, field = time.perf_counter(), ArrayField("drawn", pixels)
            found = scanner.scan(field, stages, threshold=threshold, radius=50, pool=pool)
            return found, time.perf_counter() - start

        scan(tile)  # Traces the graphs.
        print(
            "| megapixels | ROIs | kept | stage 1 s | suppression s | stage 2 s | wall s | s a MP |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for size in megapixels:
            side = round((size * 1e6) ** 0.5)
            repeats = [-(-side // tile.shape[axis]) for axis in (0, 1)]
            found, wall = scan(np.tile(tile, (*repeats, 1))[:side, :side].copy())
            spent = found.seconds
            print(
                f"| {size:g} | {found.lattice.rois:,} | {len(found.cells):,} | "
                f"{spent['stage1']:.3f} | {spent['suppression']:.3f} | "
                f"{spent.get('stage2', 0):.3f} | {wall:.3f} | {wall / size:.3f} |"
            )
    print(f"\nStages: seconds summed over {workers} workers; the last row's rate makes ", end="")
    print(f"{1000 * wall / megapixels[-1]:,.0f} s a gigapixel.")


def _stages():
    from replication.fields.find.dense import Stage1
    from replication.fields.find.stages import Stage2, Stages
    from replication.measures import decisions
    from tfds_pap.taxonomy import STAGE2_CLASSES

    networks = _networks()
    decision = decisions.Decision(STAGE2_CLASSES, None, None)
    return Stages(Stage1(*networks[1], stride=_STRIDE), Stage2(*networks[2], decision), {})


if __name__ == "__main__":
    app.run(main)
