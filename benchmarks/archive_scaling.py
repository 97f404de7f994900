"""How the time to read a list of slides falls with the number of workers.

    python benchmarks/archive_scaling.py --csv=results/archive_scaling.csv

`pap scan --slides --cluster=local` without its report: the same drawn slides, full of cells, by one
worker and by two, in turns within one run. Networks are untrained, and the threshold is such that
about as many ROIs are kept for stage 2 as trained ones kept. Workers start, load and trace before
the clock does. The ratio is of seconds by the clock, which other work on the machine moves; the
processor seconds of the workers tell what the slides cost, and how much more two workers take.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import cluster, commands, drawn_slide, phantom

_SLIDES = flags.DEFINE_integer("slides", 2, "Slides on the list (default: 2).")
_SIDE = flags.DEFINE_integer("side", 4096, "Side of a slide, pixels (default: 4096).")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers (default: 1,2).")
_REPEATS = flags.DEFINE_integer("repeats", 2, "Turns, of which the best counts (default: 2).")
_KEPT = flags.DEFINE_float("kept", 66.0, "ROIs that stage 1 keeps a megapixel (default: 66).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def main(argv: list[str]) -> None:
    """Draws slides, reads them by one and by two workers in turns, prints and writes."""
    del argv
    # Workers import from this folder as well.
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    commands.prepare_tensorflow()
    import untrained_stages

    from replication.fields.scan_directory import Settings
    from replication.runs import device

    print(machine.describe())
    device.configure(precision="float32")
    models = untrained_stages.Untrained(Path("untrained"), Path("untrained"))
    settings = Settings(threshold=_threshold(models.load(Settings())))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(_SLIDES.value + 1):
            paths.append(Path(folder) / f"slide_{number}.tif")
            # The first one, of four blocks, is for warming up.
            side = drawn_slide.FIELD + 27 if number == 0 else _SIDE.value
            # All alike: of untrained networks the scores of another stain are others.
            drawn_slide.write_slide(paths[-1], side)
        for turn in range(_REPEATS.value):
            for workers in map(int, _WORKERS.value):
                place = Path(folder) / f"scan_{turn}_{workers}"
                rows.append(_read(workers, place, list(map(str, paths)), models, settings))
                print(*(f"{name} {value}" for name, value in rows[-1].items()), sep=", ")
    alone = min(row["seconds"] for row in rows if row["workers"] == int(_WORKERS.value[0]))
    best = [
        min((row for row in rows if row["workers"] == count), key=lambda row: row["seconds"])
        for count in map(int, _WORKERS.value)
    ]
    rows = [row | {"ratio": round(alone / row["seconds"], 2)} for row in best]
    for row in rows:
        print(f"{row['workers']} workers: {row['seconds']} s, {row['ratio']} times as fast")
    machine.add_rows(_CSV.value, rows)


def _threshold(stages) -> float:
    """The score at which about `--kept` ROIs a megapixel are kept on a drawn field."""
    from replication.fields.find import suppression

    side = drawn_slide.FIELD
    field, _ = phantom.draw_field(0, width=side, height=side, cells=drawn_slide.CELLS)
    scores = stages.stage1.scores(field)
    steps = np.quantile(scores, np.linspace(0.5, 1, 101))
    kept = [len(suppression.keep(scores, float(step), 50, 25)) for step in steps]
    wanted = _KEPT.value * side * side / 1e6
    return float(steps[int(np.abs(np.array(kept) - wanted).argmin())])


def _read(workers: int, place: Path, paths: list[str], models, settings) -> dict[str, object]:
    import untrained_stages

    from replication.fields import archive
    from replication.runs.directory import RunDirectory

    stages = models.load(settings)
    with cluster.connected(cluster.LOCAL, workers=workers) as client:
        run = RunDirectory.open(place, {"benchmark": "archive_scaling"})
        archive.scan(run, paths[:1], models, stages, settings, client)
        before = sum(seconds for seconds, _ in client.run(untrained_stages.used).values())
        start = time.perf_counter()
        archive.scan(run, paths, models, stages, settings, client)
        seconds = time.perf_counter() - start
        used = list(client.run(untrained_stages.used).values())
    processor = sum(seconds for seconds, _ in used) - before
    table = archive._read(place / archive.TABLE)
    cells = sum(int(table[path]["cells"]) for path in paths[1:])
    gigapixels = _SLIDES.value * _SIDE.value**2 / 1e9
    return {
        "workers": workers,
        "slides": _SLIDES.value,
        "side_pixels": _SIDE.value,
        "cells_a_megapixel": round(cells / gigapixels / 1000, 1),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "processor_seconds_a_gigapixel": round(processor / gigapixels),
        "gigapixels_an_hour_and_core": round(3600 * gigapixels / processor, 1),
        "peak_mib_a_worker": round(max(peak for _, peak in used)),
        "load_average": round(os.getloadavg()[0], 1),
        "conditions": "beside other work",
    }


if __name__ == "__main__":
    app.run(main)
