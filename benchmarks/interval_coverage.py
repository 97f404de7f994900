"""How often each kind of interval that the project prints holds the truth.

    python benchmarks/interval_coverage.py --csv=results/interval_coverage.csv   # over an hour
    python benchmarks/interval_coverage.py --samples=40 --groups=20 --classes=4 --seeds=1

Populations of groups (slides, fields) whose images resemble each other are drawn: each group has
its own classes, its own difficulty and its own stain, so that a model errs on whole groups. A
figure is known from 20,000 groups; its 95 % intervals from small samples are set beside it. Half of
the samples of a row are of a model that is wrong in a quarter of the images, half of one that is
wrong in few. Worlds differ in how groups differ, see `coverage_populations.WORLDS`: on a world like
the first the method was made; the others were drawn for the first time by the committed run.

Rule, stated before that run: a kind holds where no row of it (world, groups, class shares, classes,
seeds) has an estimate below 0.90. Rows below are counted and printed with the standard error of the
estimate. No row is drawn again alone: where a kind is mended, all of its part is drawn again with
another --seed, which the column `seed` tells.

Figures over classes are those of the population at the class shares of the sample. `told` is the
share of samples that gave an interval at all: where a class stands in one group there is none. The
kinds whose name begins with 'tried' are not printed by the project, as they do not hold.
"""

import datetime
import itertools
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import coverage_cells
import coverage_others
from coverage_populations import WORLDS, Cells

from replication.runs import device
from tfds_pap import files

_SAMPLES = flags.DEFINE_integer(
    "samples", 1000, "Samples of each row, half of each difficulty (default: 1000).", lower_bound=20
)
_WORLDS = flags.DEFINE_list("worlds", list(WORLDS), "Worlds (default: all).")
_GROUPS = flags.DEFINE_list("groups", ["10", "20", "52", "200"], "Groups in a sample.")
_CLASSES = flags.DEFINE_list("classes", ["2", "4", "7"], "Classes.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3", "5"], "Trained models that a figure averages.")
_KNOWN = (*coverage_cells.PARTS, *coverage_others.PARTS)
_PARTS = flags.DEFINE_list(
    "parts",
    list(_KNOWN),
    f"What is drawn and told: some of {', '.join(_KNOWN)} (default: all).",
)
_SEED = flags.DEFINE_integer("seed", 14, "Seed of all draws (default: 14).")
_CSV = flags.DEFINE_string(
    "csv", None, "Where the table is written; rows of the same kind and population are replaced."
)

#: Kind, seeds, both ends and truth of every interval that a sample gives.
Told = Iterable[tuple[str, int | str, float, float, float]]

#: What a row is one of.
_ROW = ("kind", "world", "groups", "class shares", "classes", "seeds")


def main(argv: list[str]) -> None:
    """Draws all samples, prints the rows below 90 %, and writes all of them."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    for flag, known in ((_PARTS, _KNOWN), (_WORLDS, WORLDS)):
        if strange := [one for one in flag.value if one not in known]:
            raise app.UsageError(f"--{flag.name}={strange[0]}: expected some of {', '.join(known)}")
    # The commit is that of the code that is running, also where another is made meanwhile.
    provenance = _provenance()
    table = pd.DataFrame([*_of_cells(), *_of_others()]).assign(**provenance)
    _summarise(table)
    if _CSV.value:
        _write(table, Path(_CSV.value))


def _of_cells() -> Iterator[dict]:
    groups, classes, seeds = (
        [int(one) for one in flag.value] for flag in (_GROUPS, _CLASSES, _SEEDS)
    )
    parts = [one for one in _PARTS.value if one in coverage_cells.PARTS]
    cases = [*itertools.product(_WORLDS.value, classes, ("even", "rare"))] if parts else []
    for world, count, shares in tqdm.tqdm(cases, unit="population"):
        populations = [
            Cells(WORLDS[world], count, shares == "rare", hard, max(seeds), _SEED.value)
            for hard in (1.6, 4.0)
        ]
        for size in groups:
            about = {"world": world, "groups": size, "class shares": shares, "classes": count}
            yield from _rows(
                about, [coverage_cells.sampler(one, parts, seeds, size) for one in populations]
            )


def _of_others() -> Iterator[dict]:
    for part, world in itertools.product(_PARTS.value, _WORLDS.value):
        # What is drawn besides cells has two worlds.
        if part not in coverage_others.PARTS or world == "mixed":
            continue
        for size in [""] if part in coverage_others.WITHOUT_GROUPS else map(int, _GROUPS.value):
            draw = coverage_others.PARTS[part](world, size, _SEED.value)
            about = {"world": world, "groups": size, "class shares": "", "classes": ""}
            yield from _rows(about, [_without_seeds(draw)])


def _without_seeds(draw: coverage_others.Sampler) -> Callable[[np.random.Generator], Told]:
    return lambda rng: ((kind, "", *rest) for kind, *rest in draw(rng))


def _rows(about: dict, samplers: list[Callable[[np.random.Generator], Told]]) -> Iterator[dict]:
    found: dict[tuple, list[tuple[float, float, float]]] = {}
    given: dict[tuple, int] = {}
    for number, sampler in enumerate(samplers):
        rng = np.random.default_rng([_SEED.value, number, zlib.crc32(str(about).encode())])
        for _ in range(_SAMPLES.value // len(samplers)):
            for kind, seeds, low, high, truth in sampler(rng):
                row = kind, seeds
                given[row] = given.get(row, 0) + 1
                if np.isfinite(low) and np.isfinite(high):
                    found.setdefault(row, []).append((low, high, truth))
    for row, count in given.items():
        ends = np.array(found.get(row, np.zeros((0, 3))))
        holds = (ends[:, 0] <= ends[:, 2] + 1e-12) & (ends[:, 2] <= ends[:, 1] + 1e-12)
        # Of a handful of intervals a share says nothing.
        enough = len(ends) >= _SAMPLES.value / 10
        share = float(holds.mean()) if enough else np.nan
        yield {
            "kind": row[0],
            **about,
            "seeds": row[1],
            "samples": count,
            "told": round(len(ends) / count, 3),
            "coverage": round(share, 4),
            "standard error": round(np.sqrt(share * (1 - share) / max(len(ends), 1)), 4),
            "mean width": round(float((ends[:, 1] - ends[:, 0]).mean()), 4) if enough else np.nan,
        }


def _summarise(table: pd.DataFrame) -> None:
    printed = table[~table["kind"].str.startswith("tried")]
    low = printed[printed["coverage"] < 0.9]
    print(table.groupby("kind")[["coverage", "told"]].agg(["min", "median"]).round(3).to_string())
    print(f"{len(low)} of {len(printed)} rows of printed kinds have an estimate below 90 %")
    if len(low):
        print(low[[*_ROW, "told", "coverage", "standard error"]].to_string(index=False))


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([before, table]).astype({name: str for name in _ROW})
        table = table.drop_duplicates([*_ROW], keep="last")
    files.write_atomically(path, table.to_csv(index=False))


def _provenance() -> dict[str, str | int]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "seed": _SEED.value,
        "command": shlex.join(["python", "benchmarks/interval_coverage.py", *sys.argv[1:]]),
        "machine": device.processor(),
        "commit": commit or "unknown",
        "date": str(datetime.date.today()),
    }


if __name__ == "__main__":
    app.run(main)
