"""What the leak audit costs on a cluster, and whether it finds the same as in one process.

    python benchmarks/audit_cluster.py --counts=1000,10000 --workers=2 --effort=fast
    python benchmarks/audit_cluster.py --counts=200000 --alone_up_to=0     # 67 GB below TMPDIR

The drawn crops of `audit_growth.py`, by the workers of --cluster=local and then in this process.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_crops

from replication.runs import device

_COUNTS = flags.DEFINE_list("counts", ["1000", "10000"], "Numbers of images (default: 1000,10000).")
_WORKERS = flags.DEFINE_integer("workers", 2, "Workers of one thread (default: 2).")
_EFFORT = flags.DEFINE_enum("effort", "fast", ["fast", "full"], "Which audit (default: fast).")
_ALONE_UP_TO = flags.DEFINE_integer(
    "alone_up_to", 10_000, "Most images that this process audits as well (default: 10000)."
)
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def _on_cluster(path: Path, count: int, folder: Path) -> tuple[list, dict[str, Any]]:
    from tfds_pap import cluster, commands, twin_blocks, twin_cluster

    with cluster.connected(cluster.LOCAL, workers=_WORKERS.value) as client:
        client.run(commands.prepare_tensorflow)
        before, alone = client.run(time.process_time), time.process_time()
        start = time.perf_counter()
        matches = twin_cluster.find(
            client, twin_blocks.ArrayFile(path), np.arange(count), np.zeros(count, int), folder,
            effort=_EFFORT.value,
        )  # fmt: skip
        seconds, alone = time.perf_counter() - start, time.process_time() - alone
        after = client.run(time.process_time)
        memory = client.run(device.peak_memory_mib)
    kept = sum(file.stat().st_size for file in folder.iterdir())
    return matches, {
        "seconds": round(seconds, 1),
        "processor_seconds": round(sum(after[w] - before[w] for w in before), 1),
        "caller_processor_seconds": round(alone, 1),
        "peak_mib": round(max(memory.values())),
        "kept_kib_an_image": round(kept / 1024 / count, 1),
    }


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
    with tempfile.TemporaryDirectory() as drawn:
        path = Path(drawn) / "crops.npy"
        pixels, structured = planted_crops.crops(counts[-1], path)
        for count in counts:
            with tempfile.TemporaryDirectory() as blocks:
                many, spread = _on_cluster(path, count, Path(blocks))
            ways = [(_WORKERS.value, many, spread)]
            if count <= _ALONE_UP_TO.value:
                ways.append((0, *_alone(pixels[:count])))
            same = len(ways) > 1 and many == ways[1][1]
            for workers, matches, figures in ways:
                row = {
                    "effort": _EFFORT.value, "images": count, "workers": workers, **figures,
                    "pairs": len(matches), "found": _found(matches, structured[: count // 2]),
                    "same": same if len(ways) > 1 else "",
                }  # fmt: skip
                print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
                machine.add_rows(_CSV.value, [row])


def _found(matches: list, structured: np.ndarray) -> float:
    """Returns the share of the planted twins with structure that were found."""
    planted = set((2 * np.flatnonzero(structured)).tolist())
    return round(
        len(planted & {m.first for m in matches if m.second == m.first + 1}) / len(planted), 4
    )


if __name__ == "__main__":
    app.run(main)
