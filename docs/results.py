"""Renders the tables and figures of README and docs that are made of results/*.csv alone.

python docs/results.py             # part of `make results`

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; `TABLES` says how NAME is made.
"""

import functools
import io
import re
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from replication.ablation import figure as ablation_figure
from replication.ablation.sizes import Size
from replication.comparison import figures
from replication.comparison.differences import COMPARED
from replication.comparison.ranking import pareto
from replication.drawing import shown
from replication.measures.intervals import Estimate
from replication.measures.names import METRICS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: A row of the table of intervals, and the kinds of results/interval_coverage.csv in it.
_KINDS = {
    "accuracy": "accuracy",
    "sensitivity of a class": "sensitivity of a class",
    "specificity of a class": "specificity of a class",
    "PPV of a class": "PPV of a class",
    "NPV, PPV at a prevalence": "NPV at a prevalence|PPV at a prevalence",
    "balanced accuracy": "balanced accuracy",
    "macro F1": "macro f1",
    "macro precision, macro specificity, weighted F1, F1 of a class": (
        "macro precision|macro specificity|weighted f1|F1 of a class"
    ),
    "quadratic kappa": "quadratic kappa",
    "ROC-AUC of a class, mean over classes": "ROC-AUC.*",
    "Brier score": "Brier score",
    "coverage and risk at a threshold": "coverage of a threshold|risk at a threshold",
    "differences of two models": "difference in .*",
    "Student's over 2, 3, 5 seeds": "Student's of . seeds|difference over . seeds",
    "whole fields: recall, precision, F1, false positives": "fields: .*",
    "gap of two sets of images": "gap of two sets of images",
    "size of a defect: gap of two sets of images": "gap in .* of two sets of images, .*",
    "size of a defect: D5's specificity minus the true one": "published specificity minus .*",
    "search: best minus 29 equal others at once": "search: best minus all 29 others at once",
    "search: mean of a level, grids and random draws": "mean of a level.*",
}


def _same_pixels(path: Path, picture: bytes) -> bool:
    if not path.exists():
        return False
    committed, drawn = (Image.open(each).convert("RGB") for each in (path, io.BytesIO(picture)))
    return committed.size == drawn.size and committed.tobytes() == drawn.tobytes()


def main() -> None:
    """Writes both."""
    for page in pages():
        page.write_text(rendered(page.read_text()))
    for path, picture in pictures():
        # Files of equal pixels differ with the compressor that a machine has.
        if not _same_pixels(path, picture):
            path.write_bytes(picture)


def pages() -> list[Path]:
    """Returns README and the pages of docs that hold a table of results."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in texts if _BLOCK.search(page.read_text())]


def rendered(page: str) -> str:
    """Returns a page with its tables made anew.

    Raises:
        KeyError: A block names a table that is not in `TABLES`.
    """
    return _BLOCK.sub(
        lambda match: match[1] + "\n".join(TABLES[match[2]]()) + "\n" + match[3], page
    )


def read(name: str) -> pd.DataFrame:
    """Reads results/NAME.csv."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    for row in (head, None, *rows):
        cells = (
            ["---"] * len(head) if row is None else [f" {cell} " if cell else " " for cell in row]
        )
        yield f"|{'|'.join(cells)}|"


def _with_interval(row: pd.Series, name: str) -> str:
    low, high = shown.interval(row[f"{name}_low"], row[f"{name}_high"], percent=True)[1:-1].split(
        ", "
    )
    return f"{100 * row[name]:.1f} [{low}, {high}]"


def _leak() -> Iterator[str]:
    rows = []
    for (name, metric), part in read("leak").groupby(["backbone", "metric"], sort=False):
        row = part.iloc[0]
        parts = [
            f"{shown.points(row[of])} {shown.points_interval(row[f'{of}_low'], row[f'{of}_high'])}"
            + ("" if row[f"{of}_told_from_0"] else " *")
            for of in ("leak", "scarcity")
        ]
        cuts = [_with_interval(row, cut) for cut in ("by_image", "let_in", "by_group")]
        named = "" if rows and rows[-1][-1] == name else name
        rows.append((named, METRICS[metric].words, *cuts, *parts, name))
    head = (
        "backbone (3 seeds, 5 folds)", "", "cut by image, %", "own slide let in, %",
        "cut by slide, %", "leak, points", "scarcity, points",
    )  # fmt: skip
    return _table(head, [row[:-1] for row in rows])


def _comparison() -> Iterator[str]:
    rows = []
    for (rank, name, weights, gflops), part in read("comparison").groupby(
        ["rank", "backbone", "weights", "gflops"]
    ):
        by_metric = part.set_index("metric")
        size = re.match(r"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_([\d.]+)_", weights)
        cells = [
            f"{100 * one['mean']:.1f} {shown.interval(one['low'], one['high'], percent=True)}"
            for _, one in by_metric.loc[list(_COMPARED)].iterrows()
        ]
        of = f"MobileNetV2 {float(size[1])} file" if size else weights
        rows.append((str(rank), name, of, *cells, f"{gflops:.2f}"))
    return _table(("", "backbone", "weights", *_COMPARED.values(), "GFLOPs"), rows)


_COMPARED = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "macro_f1": "macro F1, %",
    "hsil_plus_sensitivity": "HSIL+ sensitivity, %",
    "hsil_plus_specificity": "HSIL+ specificity, %",
}


def _audit_recall() -> Iterator[str]:
    table = read("audit_recall")
    table = table[table["half"] == "reporting"]
    found = table.pivot_table("found", "kind", ["source", "effort"], sort=False)
    sources = ("Mendeley LBC", "CRIC", "phantoms")
    rows = [
        (kind, *(f"{100 * row[s, 'full']:.1f} / {100 * row[s, 'fast']:.1f}" for s in sources))
        for kind, row in found.iterrows()
    ]
    alarms = []
    for source in sources:
        of = table[table["source"] == source]
        alarms.append(f"{of['false_alarms'].max():,} of {of['innocent_pairs'].max():,}")
    last = "most false alarms of a kind, among pairs of different windows"
    head = (
        "planted twin: found by full / fast, %", "LBC, 200 windows of 256 px",
        "CRIC, 200 windows of 150 px", "phantoms, 200",
    )  # fmt: skip
    return _table(head, [*rows, (last, *alarms)])


def _audit_peers() -> Iterator[str]:
    table = read("audit_peers")
    tools = list(table["tool"].unique())
    found = table.pivot_table("found", "kind", "tool", sort=False)[tools]
    rows = [[kind, *(f"{100 * share:.1f}" for share in row)] for kind, row in found.iterrows()]
    by_tool = table.groupby("tool", sort=False)
    seconds = by_tool["processor_seconds"].mean()[tools]
    rows.append(
        [
            "processor seconds for 320 images, start of Python included",
            *(f"{s:.1f}" for s in seconds),
        ]
    )
    rows.append(["most memory, MiB", *(f"{m:.0f}" for m in by_tool["peak_mib"].max()[tools])])
    short = [tool.replace(" on MobileNetV2 features", "") for tool in tools]
    pairs = table["innocent_pairs"].max()
    return _table((f"found at no false alarm in {pairs:,} pairs, %", *short), rows)


def _audit_cluster() -> Iterator[str]:
    rows = [
        (
            f"{one.images:,}",
            f"{one.workers} workers" if one.workers else "this process",
            f"{one.seconds:,.0f}",
            f"{one.processor_seconds:,.0f}",
            f"{one.caller_processor_seconds:.1f}" if one.workers else "",
            f"{one.peak_mib:,.0f}",
            f"{one.kept_kib_an_image:.0f}" if one.workers else "",
            f"{one.pairs:,}",
            one.machine,
        )
        for one in read("audit_cluster").itertuples()
    ]
    head = (
        "drawn crops", "computed by", "s", "processor seconds", "of the caller beside it",
        "peak of a process, MiB", "kept meanwhile, KiB an image", "pairs", "processor",
    )  # fmt: skip
    return _table(head, rows)


#: Images of the audit that is told on paper, and what a core is taken to cost, $ an hour.
_ON_PAPER = 10**8
_CORE_HOUR = 0.05
#: 80 keypoints an image in 1,000 parts, and what is read of each: `twin_blocks.meet`.
_OF_A_PART = 80 * _ON_PAPER // 1_000
_MEMBER_BYTES = 280


def _audit_on_paper() -> Iterator[str]:
    spread = read("audit_cluster").query("workers > 0")
    largest = spread.loc[spread["images"].idxmax()]
    # A keypoint meets a number of others that grows with the root of the images.
    spread = spread[spread["machine"] == largest["machine"]]
    root, an_image = spread["images"] ** 0.5, 1000 * spread["processor_seconds"] / spread["images"]
    slope = root.cov(an_image) / root.var()
    base = an_image.mean() - slope * root.mean()
    milliseconds = base + slope * _ON_PAPER**0.5
    hours = milliseconds / 1000 * _ON_PAPER / 3600
    caller = largest["caller_processor_seconds"] / largest["images"] * _ON_PAPER / 3600
    kept = largest["kept_kib_an_image"] * 1024 * _ON_PAPER / 1e12
    rows = [
        (
            "processor time an image",
            f"{base:.1f} + {slope:.3f} x the root of the images, ms",
            f"{milliseconds:,.0f} ms",
        ),
        (
            "all of it",
            f"{_ON_PAPER:,} x {milliseconds:,.0f} ms / 3,600 s",
            f"{hours:,.0f} core hours",
        ),
        ("with 1,000 workers of one core", f"{hours:,.0f} / 1,000", f"{hours / 1000:,.0f} h"),
        (
            "money, where a core costs $ 0.05 an hour (an assumption)",
            f"{hours:,.0f} x $ {_CORE_HOUR}",
            f"$ {hours * _CORE_HOUR:,.0f}",
        ),
        (
            "kept on the shared file system meanwhile",
            f"{_ON_PAPER:,} x {largest['kept_kib_an_image']:.0f} KiB",
            f"{kept:,.1f} TB",
        ),
        (
            "memory of a worker",
            f"{_OF_A_PART:,} keypoints of a part x {_MEMBER_BYTES} bytes, twice, "
            f"and {largest['peak_mib']:,.0f} MiB as here",
            f"{(2 * _OF_A_PART * _MEMBER_BYTES + largest['peak_mib'] * 2**20) / 1e9:.1f} GB",
        ),
        (
            "the caller alone, which nobody helps",
            f"{_ON_PAPER:,} x {1000 * largest['caller_processor_seconds'] / largest['images']:.2f}"
            " ms / 3,600 s",
            f"{caller:,.0f} h",
        ),
    ]
    return _table(("100 million images, fast", "arithmetic", "on paper"), rows)


def _interval_coverage() -> Iterator[str]:
    table = read("interval_coverage")
    table = table[~table["kind"].str.startswith("tried")]
    rows = []
    for name, pattern in _KINDS.items():
        # Too few of a population's samples had an interval where there is no coverage.
        of = table[table["kind"].str.fullmatch(pattern)].dropna(subset="coverage")
        lowest = of.loc[of["coverage"].idxmin()]
        rows.append(
            (
                name,
                f"{100 * lowest['coverage']:.1f} ({100 * lowest['standard error']:.1f})",
                f"{100 * of['coverage'].median():.1f}",
                f"{(of['coverage'] < 0.9).sum()} of {len(of):,}",
            )
        )
    head = ("kind", "lowest row, % (standard error)", "median row, %", "rows below 90 %")
    return _table(head, rows)


def _first_minute() -> Iterator[str]:
    table = read("first_minute")
    flags = table[table["asked"] == "wrong flag"]
    rows = [(f"`{row['line']}`", *_seconds(row)) for _, row in table.iterrows()]
    spans = [
        f"{flags[column].min():.2f} to {flags[column].max():.2f} s"
        for column in ("seconds", "processor_seconds")
    ]
    first, last = flags.index[0], flags.index[-1]
    rows[first : last + 1] = [(f"`pap COMMAND --nonsense`, each of {len(flags)} commands", *spans)]
    return _table(("asked", "answered in", "processor"), rows)


def _seconds(row: pd.Series) -> tuple[str, str]:
    return f"{row['seconds']:.2f} s", f"{row['processor_seconds']:.2f} s"


def _benchmark(name: str) -> Iterator[str]:
    rows = []
    for _, row in read(name).iterrows():
        figures = [_with_interval(row, metric) for metric in COMPARED]
        gap = ""
        if row["cut"] == "image":
            ends = (row[f"accuracy_minus_by_group_{end}"] for end in ("low", "high"))
            gap = f"{shown.points(row['accuracy_minus_by_group'])} {shown.points_interval(*ends)}"
        twins = f"{row['audit_pairs_across_folds']:g}"
        rows.append((row["model"], row["cut"], *figures, gap, twins))
    metrics = (f"{METRICS[metric].words}, %" for metric in COMPARED)
    head = ("model", "cut by", *metrics, "accuracy above by group, points", "twins across folds")
    return _table(head, rows)


def _defects() -> Iterator[str]:
    rows = []
    for _, row in read("defects").iterrows():
        if row["difference"] != row["difference"]:
            continue
        ends = shown.points_interval(row["low"], row["high"])
        points = f"{shown.points(row['difference'])} {ends}"
        sides = [f"{100 * row[side]:.1f}" for side in ("with_defect", "without")]
        if row["defect"] == "D7":
            points, sides = f"± {100 * row['difference']:.1f}", ["", ""]
        metric = row["metric"].replace("_", " ")
        rows.append(
            (
                f"{row['defect']} of {row['part']}",
                row["what"],
                metric,
                *sides,
                points,
                row["verdict"],
                str(row["seeds"]),
            )
        )
    head = ("", "with it, or without", "figure", "with, %", "without, %", "points", "", "seeds")
    return _table(head, rows)


def _paper(name: str) -> Iterator[str]:
    table = read(name)
    rows = [
        (
            f"`{row['step']}`",
            row["what"],
            f"{row['seconds']:,.0f}",
            f"{row['processor_seconds']:,.0f}",
            f"{row['peak_memory_mib']:,.0f}",
            "; ".join(said for said in (row["reduced"], row["weights"]) if isinstance(said, str)),
        )
        # A step that was not run, or failed, has no time.
        for _, row in table[table["state"] == "done"].iterrows()
    ]
    total = table.loc[table["state"] == "done", ["seconds", "processor_seconds"]].sum()
    together = ("together", "", *(f"{each:,.0f}" for each in total), "", "")
    head = ("step", "", "s", "processor s", "peak MiB", "left out; weights")
    return _table(head, [*rows, together])


def _fewer_passes() -> Iterator[str]:
    steps = {"p2": "P2, a step of training", "p3": "P3, a step of training"}
    rows = []
    for name, part in read("fewer_passes").groupby("network", sort=False):
        cells = []
        for _, row in part.iterrows():
            cells += [f"{row[rate]:,.0f}" for rate in _RATES] + [f"{row['times']:.2f}"]
        rows.append((steps.get(name, name), *cells))
    head = ("network", *(f"float32, {said}" for said in _RATES.values()), "times")
    return _table((*head, *(f"bfloat16, {said}" for said in _RATES.values()), "times"), rows)


_RATES = {"plain_images_per_second": "Keras, images/s", "images_per_second": "here"}


TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "leak": _leak,
    "comparison": _comparison,
    "audit_recall": _audit_recall,
    "audit_peers": _audit_peers,
    "audit_cluster": lambda: (*_audit_cluster(), "", *_audit_on_paper()),
    "interval_coverage": _interval_coverage,
    "first_minute": _first_minute,
    **{
        path.stem: functools.partial(_benchmark, path.stem)
        for path in sorted(RESULTS.glob("benchmark_*.csv"))
    },
    "defects": _defects,
    "fewer_passes": _fewer_passes,
    "paper": functools.partial(_paper, "paper"),
    "paper_size": functools.partial(_paper, "paper_size"),
}


def pictures() -> Iterator[tuple[Path, bytes]]:
    """Yields the figures that need nothing but a table: where each is kept, and its PNG."""
    leaks = [_of_leak(name, part) for name, part in read("leak").groupby("backbone", sort=False)]
    result = types.SimpleNamespace(leaks=leaks, candidates=[], unit="slide")
    picture = figures.leak(result, "balanced_accuracy", "png")
    yield ROOT / "docs" / "leak_balanced_accuracy.png", picture
    picture = figures.accuracy_against(_of_comparison(), "gflops", "png")
    yield ROOT / "docs" / "comparison_cost.png", picture
    picture = ablation_figure.sizes(ablation_figure.drawable(_of_defects()), "png")
    yield ROOT / "docs" / "defects_sizes.png", picture


def _of_defects() -> list[Size]:
    return [
        Size(
            defect=row["defect"], part=row["part"], what=row["what"], metric=row["metric"],
            with_defect=row["with_defect"], without=row["without"],
            points=Estimate(row["difference"], row["low"], row["high"], row["images"], ""),
            seeds=row["seeds"], groups=row["groups"],
        )
        for _, row in read("defects").iterrows()
    ]  # fmt: skip


def _of_leak(name: str, part: pd.DataFrame) -> types.SimpleNamespace:
    """What the figure asks of a `replication.comparison.leaks.Leak`."""
    rows = part.set_index("metric")

    def of(column: str) -> dict[str, types.SimpleNamespace]:
        return {
            metric: types.SimpleNamespace(
                mean=row[column],
                value=row[column],
                low=row[f"{column}_low"],
                high=row[f"{column}_high"],
                told_from_zero=bool(row.get(f"{column}_told_from_0")),
            )
            for metric, row in rows.iterrows()
        }

    return types.SimpleNamespace(
        name=name,
        by_image=of("by_image"),
        by_group=of("by_group"),
        difference=of("by_image_minus_by_group"),
        control=types.SimpleNamespace(
            let_in=of("let_in"), leak=of("leak"), scarcity=of("scarcity")
        ),
        majority=rows["majority"].to_dict(),
        majority_class="NILM",
    )


def _of_comparison() -> types.SimpleNamespace:
    """What the figure asks of a `replication.comparison.ranking.Comparison`."""
    table = read("comparison")
    table = table[table["metric"] == "accuracy"]
    ranked = [
        types.SimpleNamespace(
            candidate=types.SimpleNamespace(
                name=row["backbone"],
                trained=row["weights"] != "untrained",
                cost=types.SimpleNamespace(gflops=row["gflops"]),
            ),
            summary={"accuracy": types.SimpleNamespace(**row[["mean", "low", "high"]])},
        )
        for _, row in table.iterrows()
    ]
    trained = table[table["weights"] != "untrained"].set_index("backbone")
    front = pareto(trained["mean"].to_dict(), trained["gflops"].to_dict())
    return types.SimpleNamespace(ranked=ranked, front=lambda _: front)


if __name__ == "__main__":
    main()
