"""How the time to read a list of slides falls with the number of workers.

    python benchmarks/archive_scaling.py --csv=results/archive_scaling.csv

`pap scan --slides --cluster=local` without its report: the same drawn slides, full of cells, by two
workers, and by one of them when the other has retired. Networks are untrained, the threshold is
such that about as many ROIs are kept for stage 2 as trained ones kept. Workers start, load and
trace before the clock does. The ratio is of seconds by the clock, which other work moves;
the processor seconds of the workers tell what the slides cost, and how much more two workers take.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import cluster, commands, drawn_slide, phantom

_SLIDES = flags.DEFINE_integer("slides", 2, "Slides on the list (default: 2).")
_SIDE = flags.DEFINE_integer("side", 3072, "Side of a slide, pixels (default: 3072).")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers (default: 1,2).")
_KEPT = flags.DEFINE_float("kept", 66.0, "ROIs that stage 1 keeps a megapixel (default: 66).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def main(argv: list[str]) -> None:
    """Draws slides, reads them by two workers and then by one, prints and writes."""
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = untrained_stages.Untrained(Path(folder) / "1.keras", Path(folder) / "2.keras")
        models.save()
        settings = Settings(threshold=_threshold(models.load(Settings())))
        paths = []
        for number in range(_SLIDES.value + 1):
            paths.append(Path(folder) / f"slide_{number}.tif")
            # The first one, of four blocks, is for warming up.
            side = drawn_slide.FIELD + 27 if number == 0 else _SIDE.value
            # All alike: of untrained networks the scores of another stain are others.
            drawn_slide.write_slide(paths[-1], side)
        for row in _read(Path(folder), list(map(str, paths)), models, settings):
            print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
            rows.append(row)
    alone = rows[-1]["seconds"]
    rows = [
        row | {"one_worker/workers": round(alone / row["seconds"], 2)} for row in reversed(rows)
    ]
    for row in rows:
        times = row["one_worker/workers"]
        print(f"{row['workers']} workers: {row['seconds']} s, {times} times as fast")
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


def _read(folder: Path, paths: list[str], models, settings) -> Iterator[dict[str, object]]:
    """Reads the list once for each number of workers, the largest first; then some retire."""
    import untrained_stages

    from replication.fields import archive
    from replication.runs.directory import RunDirectory

    stages = models.load(settings)
    counts = sorted(map(int, _WORKERS.value), reverse=True)
    run = RunDirectory.open(folder / "scan", {"benchmark": "archive_scaling"})
    with cluster.connected(cluster.LOCAL, workers=counts[0]) as client:
        client.wait_for_workers(counts[0])
        archive.scan(run, paths[:1], models, stages, settings, client)
        for count in counts:
            client.retire_workers(list(client.nthreads())[count:])
            while len(client.nthreads()) != count:
                time.sleep(0.1)
            # As if none had been read; workers keep what they loaded for this directory.
            shutil.rmtree(run.path / "fields")
            before = sum(seconds for seconds, _ in client.run(untrained_stages.used).values())
            start = time.perf_counter()
            archive.scan(run, paths[1:], models, stages, settings, client)
            seconds = time.perf_counter() - start
            used = list(client.run(untrained_stages.used).values())
            processor = sum(seconds for seconds, _ in used) - before
            table = archive._read(run.path / archive.TABLE)
            cells = sum(int(table[path]["cells"]) for path in paths[1:])
            gigapixels = _SLIDES.value * _SIDE.value**2 / 1e9
            yield {
                "workers": count,
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
