"""How often each kind of interval that the project prints holds the truth.

    python benchmarks/interval_coverage.py --csv=results/interval_coverage.csv      # half an hour
    python benchmarks/interval_coverage.py --samples=40 --groups=20 --classes=4 --seeds=1

Populations of groups (slides, fields) whose images resemble each other are drawn: each group has
its own classes, its own difficulty and its own stain, so that a model errs on whole groups. A
figure is known from 20,000 groups; its 95 % intervals from small samples are set beside it. In the
rare world the last class is 2 % of the images and stands in 6 % of the groups. Half of the samples
of a row are of a model that is wrong in a quarter of the images, half of one that is wrong in few.

Figures over classes are those of the population at the class shares of the sample. `told` is the
share of samples that gave an interval at all: where a class stands in one group there is none. The
kinds whose name begins with 'tried' are not printed by the project, as they do not hold.
"""

import datetime
import itertools
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import coverage_worlds as worlds

from replication import runs

_SAMPLES = flags.DEFINE_integer(
    "samples", 300, "Samples of each row, half of each difficulty (default: 300).", lower_bound=20
)
_GROUPS = flags.DEFINE_list("groups", ["10", "20", "52", "200"], "Groups in a sample.")
_CLASSES = flags.DEFINE_list("classes", ["2", "4", "7"], "Classes.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3", "5"], "Trained models that a figure averages.")
_PARTS = flags.DEFINE_list(
    "parts",
    list(worlds.PARTS),
    "What is drawn and told: some of " + ", ".join(worlds.PARTS) + " (default: all).",
)
_CSV = flags.DEFINE_string(
    "csv", None, "Where the table is written; rows of the same kind and population are replaced."
)

#: Interval and truth of every figure that a sample gives.
Told = Iterable[tuple[str, float, float, float]]


def main(argv: list[str]) -> None:
    """Draws all samples, prints the rows below 90 %, and writes all of them."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    groups, classes, seeds = (
        [int(one) for one in flag.value] for flag in (_GROUPS, _CLASSES, _SEEDS)
    )
    for part in _PARTS.value:
        if part not in worlds.PARTS:
            raise app.UsageError(f"--parts={part}: expected some of {', '.join(worlds.PARTS)}")
    rows = []
    cells = list(itertools.product(classes, ("even", "rare"), seeds))
    if not {*_PARTS.value} & {*worlds.OF_CELLS}:
        cells = []
    for count, shares, models in tqdm.tqdm(cells, unit="population"):
        cases = [
            worlds.Cells(count, shares == "rare", hard, models, _PARTS.value) for hard in (1.6, 4.0)
        ]
        for size in groups:
            about = {"groups": size, "class shares": shares, "classes": count, "seeds": models}
            rows += _rows(about, [case.sampler(size) for case in cases])
    for size in groups:
        about = {"groups": size, "class shares": "", "classes": "", "seeds": ""}
        samplers = {part: worlds.OTHERS[part] for part in _PARTS.value if part in worlds.OTHERS}
        rows += _rows(about, [draw(size) for draw in samplers.values()])
    table = pd.DataFrame(rows).assign(**_provenance())
    printed = table[~table["kind"].str.startswith("tried")]
    low = printed[(printed["coverage"] < 0.9) & (printed["told"] > 0)]
    print(table.groupby("kind")[["coverage", "told"]].agg(["min", "median"]).round(3).to_string())
    print(f"{len(low)} of {len(printed)} rows of printed kinds are below 90 %")
    if len(low):
        print(low[["kind", *about, "told", "coverage"]].to_string(index=False))
    if _CSV.value:
        path, same = Path(_CSV.value), ["kind", *about]
        if path.exists():
            table = pd.concat([pd.read_csv(path, keep_default_na=False), table]).astype(
                {k: str for k in same}
            )
            table = table.drop_duplicates(same, keep="last")
        runs.write_atomically(path, table.to_csv(index=False))


def _rows(about: dict, samplers: list[Callable[[np.random.Generator], Told]]) -> Iterator[dict]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    given: dict[str, int] = {}
    for number, sampler in enumerate(samplers):
        rng = np.random.default_rng([number, *map(ord, str(about))])
        for _ in range(_SAMPLES.value // 2):
            for kind, low, high, truth in sampler(rng):
                given[kind] = given.get(kind, 0) + 1
                if np.isfinite(low) and np.isfinite(high):
                    found.setdefault(kind, []).append((low, high, truth))
    for kind, count in given.items():
        ends = np.array(found.get(kind, np.zeros((0, 3))))
        holds = (ends[:, 0] <= ends[:, 2] + 1e-12) & (ends[:, 2] <= ends[:, 1] + 1e-12)
        # Of a handful of intervals a share says nothing.
        enough = len(ends) >= _SAMPLES.value / 10
        yield {
            "kind": kind,
            **about,
            "samples": count,
            "told": round(len(ends) / count, 3),
            "coverage": round(float(holds.mean()), 3) if enough else np.nan,
            "mean width": round(float((ends[:, 1] - ends[:, 0]).mean()), 4) if enough else np.nan,
        }


def _provenance() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": shlex.join(["python", "benchmarks/interval_coverage.py", *sys.argv[1:]]),
        "machine": runs.processor(),
        "commit": commit or "unknown",
        "date": str(datetime.date.today()),
    }


if __name__ == "__main__":
    app.run(main)
