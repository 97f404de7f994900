"""What the leak audit costs on a cluster, and whether it finds the same as in one process.

    python benchmarks/audit_cluster.py --counts=1000,10000 --workers=2 --effort=fast
    python benchmarks/audit_cluster.py --counts=200000 --alone_up_to=0 --folder=DIR     # 67 GB

The drawn crops of `audit_growth.py`, by the workers of --cluster=local and then in this process.
With `--folder` the same command goes on where it was killed; times are of all its processes.
"""

import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_crops

from replication.runs import device
from tfds_pap import files

_COUNTS = flags.DEFINE_list("counts", ["1000", "10000"], "Numbers of images (default: 1000,10000).")
_WORKERS = flags.DEFINE_integer("workers", 2, "Workers of one thread (default: 2).")
_EFFORT = flags.DEFINE_enum("effort", "fast", ["fast", "full"], "Which audit (default: fast).")
_ALONE_UP_TO = flags.DEFINE_integer(
    "alone_up_to", 10_000, "Most images that this process audits as well (default: 10000)."
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Where crops and blocks are kept (default: a temporary folder)."
)
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


class _Spent(threading.Thread):
    """Writes down every few seconds what was spent, so that a killed command costs no figure."""

    def __init__(self, client: Any, place: Path) -> None:
        super().__init__(daemon=True)
        self._client, self._place, self._over = client, place, threading.Event()
        self._before = json.loads(place.read_text()) if place.exists() else {}
        self._workers = client.run(time.process_time)
        self._start = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        """What this command and those before it spent."""
        after = self._client.run(time.process_time)
        now = {
            "seconds": time.perf_counter() - self._start[0],
            "processor_seconds": sum(after[w] - self._workers.get(w, 0.0) for w in after),
            "caller_processor_seconds": time.process_time() - self._start[1],
        }
        spent = {name: self._before.get(name, 0.0) + value for name, value in now.items()}
        peak = max(self._client.run(device.peak_memory_mib).values())
        return spent | {"peak_mib": max(peak, self._before.get("peak_mib", 0.0))}

    def write(self) -> dict[str, float]:
        """Writes the figures down, and returns them."""
        figures = {name: round(value, 1) for name, value in self.figures().items()}
        files.write_atomically(self._place, json.dumps(figures))
        return figures

    def run(self) -> None:
        """Writes until it is over."""
        while not self._over.wait(10):
            self.write()

    def end(self) -> dict[str, float]:
        """Stops writing; returns the figures."""
        self._over.set()
        self.join()
        return self.write()


def _on_cluster(path: Path, count: int, folder: Path) -> tuple[list, dict[str, Any]]:
    from tfds_pap import cluster, commands, twin_blocks, twin_cluster

    folder.mkdir(exist_ok=True)
    with cluster.connected(cluster.LOCAL, workers=_WORKERS.value) as client:
        client.run(commands.prepare_tensorflow)
        spent = _Spent(client, folder.with_suffix(".spent.json"))
        spent.start()
        matches = twin_cluster.find(
            client, twin_blocks.ArrayFile(path), np.arange(count), np.zeros(count, int), folder,
            effort=_EFFORT.value,
        )  # fmt: skip
        figures = spent.end()
    kept = sum(file.stat().st_size for file in folder.iterdir())
    return matches, figures | {"kept_kib_an_image": round(kept / 1024 / count, 1)}


def _alone(pixels: np.ndarray) -> tuple[list, dict[str, Any]]:
    from tfds_pap import near_duplicates

    processor, start = time.process_time(), time.perf_counter()
    matches = near_duplicates.find(pixels, effort=_EFFORT.value)
    return matches, {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "caller_processor_seconds": "",
        "peak_mib": round(device.peak_memory_mib()),
        "kept_kib_an_image": "",
    }


def main(argv: list[str]) -> None:
    """Draws, audits, compares, prints and writes."""
    del argv
    print(machine.describe())
    counts = sorted(int(count) for count in _COUNTS.value)
    with contextlib.ExitStack() as stack:
        folder = Path(_FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "crops.npy"
        pixels, structured = planted_crops.crops(counts[-1], path)
        for count in counts:
            many, spread = _on_cluster(path, count, folder / f"blocks_{_EFFORT.value}_{count}")
            ways = [(_WORKERS.value, many, spread)]
            if count <= _ALONE_UP_TO.value:
                ways.append((0, *_alone(pixels[:count])))
            same = len(ways) > 1 and many == ways[1][1]
            for workers, matches, figures in ways:
                found, _ = planted_crops.found(matches, structured[: count // 2])
                row = {
                    "effort": _EFFORT.value, "images": count, "workers": workers, **figures,
                    "pairs": len(matches), "found": found, "same": same if len(ways) > 1 else "",
                }  # fmt: skip
                print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
                machine.add_rows(_CSV.value, [row])


if __name__ == "__main__":
    app.run(main)
