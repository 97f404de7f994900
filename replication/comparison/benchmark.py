"""A benchmark's table, models x cuts, and its page; made from predictions and manifest alone.

A run directory of `pap benchmark`:

    manifest.json                                  `benchmark`: what `describe` returns
    <cut>/<backbone>/seed_<N>/predictions.csv      of all folds
    benchmark.csv  report.html  audit.html
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replication.comparison import steps
from replication.comparison.differences import COMPARED, differences, majority
from replication.drawing import pages, shown, terminal
from replication.learning import features, heads, knobs
from replication.measures import evaluation, names
from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from tfds_pap import files, leak_audit, pipeline
from tfds_pap.answer import Answer, Figure

#: The table, in a run directory.
TABLE = "benchmark.csv"

#: What `pap benchmark` cuts by; the first says what to expect of the next group.
CUTS = ("group", "image")

_CONFIDENCE, _RESAMPLES, _SEED = 0.95, 2000, 0


def cuts(index: pipeline.Index) -> tuple[str, ...]:
    """Returns how images are cut: by group as well where the group of every image is known."""
    return CUTS if np.all(index.groups != "") else ("image",)


def describe(
    name: str,
    layout: str,
    index: pipeline.Index,
    design: steps.Design,
    specs: Mapping[str, features.FeatureSpec],
    recipe: knobs.HeadRecipe,
    audit: leak_audit.Audit,
) -> dict[str, Any]:
    """Returns what rows say beside their figures, for the manifest's `benchmark`.

    Args:
        name: What the table calls the images.
        layout: That the tree was read by.
        index: The images.
        design: What is scored on what.
        specs: The features of each backbone.
        recipe: How heads are trained.
        audit: Of the same images.
    """
    labelled = {*zip(index.labels.tolist(), index.groups.tolist(), strict=True)}
    classes = list(enumerate(index.class_names))
    return {
        "set": name,
        "layout": layout,
        "cuts": list(design.cuts),
        "seeds": list(design.seeds),
        "folds": design.folds,
        "unit": design.unit,
        "head": _head_words(recipe),
        "images_by_class": {c: int((index.labels == number).sum()) for number, c in classes},
        "groups_by_class": {
            c: sum(label == number and group != "" for label, group in labelled)
            for number, c in classes
        },
        "audit_pairs": len(audit.pairs),
        "audit_pairs_across_folds": {
            cut: np.mean(
                [_pairs_across(index, cut, seed, design, audit) for seed in design.seeds]
            ).item()
            for cut in design.cuts
        },
        "models": {
            model: {
                "weights": spec.weights.label,
                "weights_digest": spec.weights.digest,
                "size": spec.size,
            }
            for model, spec in specs.items()
        },
    }


def _head_words(recipe: knobs.HeadRecipe) -> str:
    units = ", ".join(map(str, recipe.hidden_units)) or "no hidden"
    return (
        f"{units} units, dropout {recipe.dropout:g}, {recipe.optimizer} at "
        f"{recipe.learning_rate:g}, batches of {recipe.batch_size}, {recipe.epochs} epochs"
    )


def _pairs_across(
    index: pipeline.Index, cut: str, seed: int, design: steps.Design, audit: leak_audit.Audit
) -> int:
    """Pairs of twins one of which is tested by a model that trained on the other."""
    roles = heads.cut(
        index,
        cut,
        protocol=design.protocol,
        count=design.folds,
        seed=seed,
        blocks=design.blocks,
    )
    fold = {
        image: number for number, one in enumerate(roles) for image in index.ids[one.test].tolist()
    }
    return sum(fold[pair.first] != fold[pair.second] for pair in audit.pairs)


def read(run: RunDirectory, cut: str, model: str, seeds: Sequence[int]) -> list[Predictions]:
    """Returns the predictions of one model under one cut, a seed each, with rows sorted by id."""
    runs = []
    for seed in seeds:
        one = Predictions.read(run.path / cut / model / f"seed_{seed}" / "predictions.csv")
        runs.append(one.take(sorted(range(len(one)), key=one.ids.__getitem__)))
    return runs


def table(run: RunDirectory) -> pd.DataFrame:
    """Makes the table of a run directory whose fits are finished: a row a model and cut.

    Args:
        run: Its manifest holds `benchmark`, `data`, `environment` and `source`.
    """
    manifest = run.manifest()
    about = manifest["benchmark"]
    (data,) = manifest["data"].values()
    known = about["groups_by_class"]
    rows = []
    for model, weights in about["models"].items():
        scored = {cut: read(run, cut, model, about["seeds"]) for cut in about["cuts"]}
        for cut, runs in scored.items():
            rows.append(
                {
                    "set": about["set"],
                    "source": manifest["source"],
                    "fingerprint": data["fingerprint"],
                    "layout": about["layout"],
                    "images": len(runs[0]),
                    "images_by_class": json.dumps(about["images_by_class"]),
                    "groups": len({*runs[0].groups} - {""}),
                    "groups_by_class": json.dumps(known) if any(known.values()) else "",
                    "model": model,
                    **weights,
                    "head": about["head"],
                    "cut": cut,
                    "folds": about["folds"],
                    "seeds": " ".join(map(str, about["seeds"])),
                    **_figures(cut, scored),
                    "audit_pairs": about["audit_pairs"],
                    "audit_pairs_across_folds": about["audit_pairs_across_folds"][cut],
                    **_made(manifest["environment"]),
                }
            )
    return pd.DataFrame(rows)


def _figures(cut: str, scored: Mapping[str, Sequence[Predictions]]) -> dict[str, float | str]:
    """Figures of one cut with their intervals and, by image, how much they are above by group."""
    runs = scored[cut]
    summary = evaluation.summarise_seeds(
        runs, confidence=_CONFIDENCE, resamples=_RESAMPLES, seed=_SEED
    )
    figures: dict[str, float | str] = {}
    for name in COMPARED:
        one = summary[name]
        figures |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    gaps = {}
    if cut == "image" and "group" in scored:
        gaps = differences(runs, scored["group"], _CONFIDENCE, _RESAMPLES, _SEED)
    for name in COMPARED:
        gap = gaps.get(name)
        column = f"{name}_minus_by_group"
        figures |= {
            column: gap.value if gap else np.nan,
            f"{column}_low": gap.low if gap else np.nan,
            f"{column}_high": gap.high if gap else np.nan,
        }
    _, always = majority(runs[0])
    return figures | {f"majority_{name}": always[name] for name in COMPARED}


def _made(environment: Mapping[str, Any]) -> dict[str, str]:
    versions = {"python": environment["python"], **environment["versions"]}
    return {
        "command": _command(environment["command"]),
        "machine": environment["device"],
        "commit": environment["git_commit"],
        "packages": "; ".join(f"{name} {version}" for name, version in versions.items()),
        "date": environment["time"][:10],
    }


def _command(typed: str) -> str:
    """A command without what says where this machine keeps things."""
    words = [
        re.sub(r"=(~|/|\.\./)[^,]*", "=DIR", word)
        for word in shlex.split(typed)
        if not word.startswith(("--run_dir", "--data_dir", "--features_dir", "--cluster"))
    ]
    return shlex.join(words)


def write(run: RunDirectory) -> Path:
    """Writes table and page of a run directory whose fits are finished.

    Args:
        run: See `table`.

    Returns:
        The page; it loads nothing from outside.
    """
    rows = table(run)
    files.write_atomically(run.path / TABLE, rows.to_csv(index=False))
    manifest = run.manifest()
    page = pages.template("replication.comparison", "benchmark.html.j2").render(
        about=manifest["benchmark"],
        announcement=pages.announcement(manifest),
        answer=_answer(rows, manifest["benchmark"]["unit"]),
        environment=manifest["environment"],
        audit_page=pages.beside(run.path, "audit.html"),
        audit=[entry["line"] for entry in manifest["audit"].values()],
        fingerprint=rows.fingerprint[0],
        images=int(rows.images[0]),
        groups=int(rows.groups[0]),
        rows=[_shown(row) for row in rows.to_dict("records")],
        metrics={name: names.SHARES[name] for name in COMPARED},
        majority=[shown.number(rows[f"majority_{name}"][0], percent=True) for name in COMPARED],
        details=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    return path


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row in the words of the page."""

    def figure(name: str) -> shown.Shown:
        return shown.shown(row[name], row[f"{name}_low"], row[f"{name}_high"])

    gaps = []
    for name in COMPARED:
        column = f"{name}_minus_by_group"
        ends = row[f"{column}_low"], row[f"{column}_high"]
        gaps.append((shown.points(row[column]), shown.points_interval(*ends)))
    return {
        "model": row["model"],
        "weights": row["weights"],
        "size": row["size"],
        "cut": row["cut"],
        "figures": [figure(name) for name in COMPARED],
        "gaps": gaps if np.isfinite(row["accuracy_minus_by_group"]) else [],
        "pairs": f"{row['audit_pairs_across_folds']:g}",
    }


def print_table(run: RunDirectory) -> None:
    """Prints whose images they are, the audit and the table of a run directory with both.

    Args:
        run: See `table`.
    """
    manifest, console = run.manifest(), terminal.console(width=140)
    if announcement := pages.announcement(manifest):
        console.print(f"\n{announcement}", style="bold")
    for entry in manifest["audit"].values():
        console.print(entry["line"])
    head = ("model", "weights", "cut by", *(f"{names.SHARES[name]}, %" for name in COMPARED))
    lines = [
        (
            row["model"],
            row["weights"],
            row["cut"],
            *(f"{one.value} {one.interval}" for one in row["figures"]),
        )
        for row in map(_shown, table(run).to_dict("records"))
    ]
    title = f"{manifest['benchmark']['set']}: mean over the seeds [95 % interval]"
    console.print(terminal.table(head, lines, title=title))


def _answer(rows: pd.DataFrame, unit: str) -> Answer:
    """Sums the table up by its model that is best under the stricter cut."""
    cut = rows.cut[0]
    best = rows[rows.cut == cut].sort_values("accuracy", ascending=False).iloc[0]
    by = unit if cut == "group" else "image"
    value = shown.shown(best.accuracy, best.accuracy_low, best.accuracy_high)
    always = shown.number(best.majority_accuracy, percent=True)
    figures = [
        Figure(value.value, value.interval, f"accuracy of {best.model}, folds cut by {by}"),
        Figure(f"{always} %", "", "always naming the most frequent class"),
    ]
    sentence = f"{best.model} names {value.value} of the images rightly, folds cut by {by}."
    if cut == "group":
        image = rows[(rows.cut == "image") & (rows.model == best.model)].iloc[0]
        gap = shown.points(image.accuracy_minus_by_group)
        ends = image.accuracy_minus_by_group_low, image.accuracy_minus_by_group_high
        figures.append(
            Figure(f"{gap} points", shown.points_interval(*ends), "what a cut by image adds")
        )
    else:
        sentence += f" No {unit} is known, so that nothing can be said of the next one."
    return Answer(
        "What do frozen backbones score on these images, and how far does it hold?",
        sentence,
        figures,
        "The best of several is partly luck, and a model that is not the best may not be told "
        "apart from it: pap compare tells. The figures hold for these images and this head alone.",
    )
