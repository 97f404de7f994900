"""What an accelerator does in this package, part by part, beside its bare forward pass.

    python benchmarks/accelerator.py --csv=results/accelerator.csv
    KERAS_BACKEND=jax python benchmarks/accelerator.py --minutes=4

On drawn images with untrained weights, which cost the same. Without an accelerator everything is
smaller (`accelerator_parts.ON_PROCESSOR`; each row states its sizes), and shows no more than that
every part works. Parts for which no time is left are skipped, and say so.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import accelerator_peaks
import machine

from replication.runs import device
from tfds_pap import commands
from tfds_pap.errors import PapError

_MINUTES = flags.DEFINE_float(
    "minutes", 5.5, "No part starts after so many minutes (default: 5.5).", lower_bound=0.1
)
_CSV = flags.DEFINE_string("csv", None, "CSV that rows are added to (default: none is written).")


def main(argv: list[str]) -> None:
    """Measures every part and prints its row as soon as it is known."""
    del argv
    start = time.perf_counter()
    commands.prepare_tensorflow()
    import accelerator_parts as parts

    policy = device.configure()
    sizes = parts.ON_ACCELERATOR if policy.accelerated else parts.ON_PROCESSOR
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        builder = parts.prepared(sizes, Path(folder))
        table = Table(policy)
        for part, rows in _parts(builder, sizes, policy, Path(folder)):
            if time.perf_counter() - start > 60 * _MINUTES.value:
                table.add(parts.Row(part, note=f"skipped: --minutes={_MINUTES.value:g} are over"))
                continue
            try:
                for row in rows():
                    table.add(row)
            except PapError as error:
                table.add(parts.Row(part, note=f"skipped: {error}"))
    print(f"{time.perf_counter() - start:.0f} s in all")
    machine.add_rows(_CSV.value, table.rows)


def _parts(
    builder: Any, sizes: Any, policy: device.DevicePolicy, place: Path
) -> Iterator[tuple[str, Callable]]:
    """Names of parts, and what measures them; the cheap ones first."""
    import accelerator_parts as parts
    import accelerator_torch

    stored = place / "features"

    def frozen(name: str) -> Iterator[tuple[str, Callable]]:
        yield f"bare forward, {name}", lambda: parts.forward(name, sizes, policy)
        yield (
            f"features through the pipeline, {name}",
            lambda: parts.stored_features(name, builder, sizes, policy, stored),
        )

    def tuned(name: str) -> tuple[str, Callable]:
        return (
            f"fine-tuning, {name}",
            lambda: parts.fine_tuning(name, builder, sizes, policy, place / name),
        )

    first, *others = sizes.backbones
    yield "input pipeline", lambda: parts.input_pipeline(builder, sizes, policy)
    yield from frozen(first)
    yield "head fit, a seed", lambda: parts.head(builder, sizes, policy, stored)
    yield "stage-2 CNN fit", lambda: parts.stage2(builder, sizes, policy, place / "stage2")
    yield "scan of a field", lambda: parts.scan(sizes)
    yield tuned(first)
    for name in others:
        yield from frozen(name)
        yield tuned(name)
    if absent := accelerator_torch.missing():
        yield "PyTorch", lambda: iter([parts.Row("PyTorch", note=f"skipped: no {absent}")])
        return
    for name in filter(accelerator_torch.has, sizes.backbones):
        yield f"PyTorch, {name}", lambda name=name: parts.pytorch(name, sizes, policy)


class Table:
    """Rows, with what each rate is a share of.

    Args:
        policy: Where and how is computed.
    """

    def __init__(self, policy: device.DevicePolicy) -> None:
        import keras

        #: As they go into the CSV.
        self.rows: list[dict[str, object]] = []
        self._bare: dict[str, float] = {}
        self._peak, source = accelerator_peaks.peak(policy.device)
        self._about = {
            "device": policy.device if policy.accelerated else f"CPU, {os.cpu_count()} cores",
            "backend": keras.backend.backend(),
            "precision": policy.precision,
        }
        words = "unknown" if self._peak is None else f"{self._peak:g} TFLOP/s ({source})"
        print(", ".join(self._about.values()), f"; peak in bfloat16: {words}", sep="")
        print(
            f"\n{'part':42}{'images':>8}{'px':>5}{'batch':>6}{'start s':>9}{'images/s':>11}", end=""
        )
        print(f"{'of bare':>9}{'of peak':>9}  note")

    def add(self, row: Any) -> None:
        """Prints a row and keeps it."""
        if row.part.startswith("bare forward"):
            self._bare[row.backbone] = row.rate
        of_bare = of_peak = None
        if row.rate and row.backbone in self._bare:
            of_bare = row.rate / self._bare[row.backbone]
        if row.rate and row.gflops and self._peak:
            of_peak = row.rate * row.gflops / 1000 / self._peak
        rate = "" if row.rate is None else f"{row.rate:.1f}"
        shares = ["" if share is None else f"{share:.3f}" for share in (of_bare, of_peak)]
        if row.gflops and row.rate and self._peak is None:
            shares[1] = "unknown"
        print(
            f"{row.part:42}{row.images:8}{row.size:5}{row.batch:6}{row.start:9.1f}{rate:>11}"
            f"{shares[0]:>9}{shares[1]:>9}  {row.note}",
            flush=True,
        )
        self.rows.append(
            {
                "part": row.part,
                "images": row.images,
                "size_px": row.size,
                "batch": row.batch,
                "start_seconds": f"{row.start:.1f}",
                "images_per_second": rate,
                "gflop_an_image": f"{row.gflops:.3f}" if row.gflops else "",
                "share_of_bare": shares[0],
                "share_of_peak": shares[1],
                "note": row.note,
                **self._about,
            }
        )


if __name__ == "__main__":
    app.run(main)
