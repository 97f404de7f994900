"""One self-contained page about a run: the papers' figures beside ours, curves, cells and data.

It is made from the manifest, the fits and their predictions, and never needs a model.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replication.drawing import confusion, figures, pages
from replication.drawing.pages import UNKNOWN, mapping, memory, whole_number
from replication.drawing.shown import (
    NO_IMAGE,
    Shown,
    confusion_words,
    estimate,
    interval,
    methods,
    number,
    plural,
    shown,
    svg,
)
from replication.measures import class_figures, evaluation, published
from replication.measures.names import METRICS, metric
from replication.measures.predictions import ROLES
from replication.report import fields_section, triage_section
from replication.report.answer import answer
from replication.report.gallery import HeatMaps, Pixels, gallery
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

#: What may lie beside the page, and what a reader finds in it.
_DOCUMENTS = {
    "model_card.md": "Model card: what the models are for, and where they fail",
    "audit.html": "Pairs of images that show the same thing, side by side",
    "claim_checklist.md": "CLAIM checklist: what a paper on these figures has to report",
}

#: What the page tells of where the run was computed, in the manifest's words.
_ENVIRONMENT = (
    "command",
    "time",
    "git_commit",
    "device",
    "precision",
    "xla",
    "python",
    "versions",
)


def write(
    run: RunDirectory,
    pixels: Pixels,
    predictions_limit: int = 6,
    *,
    prevalence: float | None = None,
    heat_maps: HeatMaps | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes `report.html` of a run, whole or not at all.

    Args:
        run: Holds a manifest and finished fits; perhaps none yet. The manifest's `audit` (data set
            -> {"line": str}) is shown below the accuracies, and `model_card.md` and
            `claim_checklist.md` are linked where they lie beside the page.
        pixels: From a stage and ids to the uint8 RGB images ``[height, width, 3]`` of these ids, in
            their order.
        predictions_limit: Cells shown in each row of the gallery.
        prevalence: Of HSIL+ where the model is to be used, between 0 and 1, for PPV and NPV. None:
            they are not given, as the share among the images is no prevalence.
        heat_maps: From a fit, ids and the class to explain of each to uint8 RGB overlays
            ``[height, width, 3]`` in the order of the ids; asked once a protocol and stage, for the
            gallery of the first seed. None: the gallery explains nothing.
        notes: Sentences for below the accuracies.

    Returns:
        The path of the page. It loads nothing from outside.

    Raises:
        PapError: This is no run directory, or one of its files is not readable.
        ValueError: Predictions are not readable, the seeds were tested on different images, the
            prevalence is not between 0 and 1, or pictures are missing or no uint8 RGB ones.
    """
    manifest = run.manifest()
    fits = results.read_fits(run)
    source = pages.source(manifest)
    rows = results.summary_rows(fits, source)
    stages: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        same = [fit for fit in fits if (fit.stage, fit.protocol) == (row.stage, row.protocol)]
        section = _section(row, same)
        section["triage"] = triage_section.section(same[0].predictions, prevalence)
        section["gallery"] = gallery(same[0], pixels, predictions_limit, heat_maps)
        stages.setdefault(row.stage, []).append(section)
    environment = mapping(manifest.get("environment"))
    page = pages.template("replication.report", "report.html.j2").render(
        announcement=pages.announcement(manifest),
        answer=answer(rows, source),
        at_class_shares=class_figures.AT_CLASS_SHARES,
        source=source,
        headline=_headline(rows),
        forest=svg(figures.forest(rows)) if rows else "",
        # Each line names its data set itself.
        audit=[_plain(mapping(one).get("line")) for one in mapping(manifest.get("audit")).values()],
        remarks=[remark for row in rows for remark in row.remarks],
        notes=notes,
        explained=heat_maps is not None,
        documents={name: text for name, text in _DOCUMENTS.items() if (run.path / name).is_file()},
        methods=list(dict.fromkeys(row.summary["accuracy"].method for row in rows)),
        several_seeds=any(row.summary["accuracy"].seeds > 1 for row in rows),
        stages=stages,
        stage_names={stage: _stage_name(stage, fits) for stage in stages},
        fields=fields_section.section(run),
        data=_data(mapping(manifest.get("data"))),
        time=_plain(environment.get("time")).replace("T", " ").replace("+00:00", " UTC"),
        environment={name: _plain(environment.get(name)) for name in _ENVIRONMENT},
        identity={k: _plain(v) for k, v in mapping(manifest.get("identity")).items()},
        durations={k: _seconds(v) for k, v in mapping(manifest.get("durations")).items()},
        peak_memory=memory(manifest.get("peak_memory_mib")),
        fits=[_fit(fit) for fit in fits],
        manifest=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    return path


def _stage_name(stage: int, fits: Sequence[results.Fit]) -> str:
    names = next(fit.predictions.class_names for fit in fits if fit.stage == stage)
    if len(names) == 2:
        return f"Stage {stage}: {names[1]} or {names[0]}"
    if set(names) == set(STAGE2_CLASSES):
        return f"Stage {stage}: {STAGE2_CLASSES[0]} to {STAGE2_CLASSES[-1]}"
    return f"Stage {stage}: {len(names)} classes"


def _headline(rows: Sequence[results.Row]) -> list[dict[str, Any]]:
    """One line a stage: published, each protocol, verdicts."""
    lines = []
    for stage in dict.fromkeys(row.stage for row in rows):
        same = {row.protocol: row for row in rows if row.stage == stage}
        first = next(iter(same.values()))
        lines.append(
            {
                "stage": stage,
                "models": list(dict.fromkeys(row.name for row in same.values())),
                "published": _published(first.published),
                "note": first.published.note,
                "source": first.published.source,
                "protocols": {name: _over_seeds(row, "accuracy") for name, row in same.items()},
                "verdicts": {name: _verdict(row.verdict) for name, row in same.items()},
            }
        )
    return lines


def _verdict(text: str) -> dict[str, str]:
    # The figures in brackets stand in the same line of the table already.
    return {"kind": text.split()[0].rstrip(":"), "text": text.partition(" (measured")[0]}


def _published(figure: published.Published) -> Shown:
    if figure.value is None:
        return Shown("not published")
    ends = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    value = " to ".join(f"{100 * end:.1f}" for end in ends) + "\u00a0%"
    if figure.interval is None:
        return Shown(value, "no interval")
    return Shown(value, interval(*figure.interval, percent=True))


def _section(row: results.Row, fits: Sequence[results.Fit]) -> dict[str, Any]:
    """One protocol of one stage."""
    tests = [fit.predictions.select("test") for fit in fits]
    # The first seed, not the best one: choosing by the test set would flatter.
    first = evaluation.evaluate(tests[0])
    infos = [fit.info for fit in fits]
    seeds = ", ".join(str(fit.seed) for fit in fits)
    support = {name: int(figures["support"]) for name, figures in first["per_class"].items()}
    names = [name for name in METRICS if name in row.summary]
    classes = tests[0].classes
    return {
        "row": row,
        "anchor": f"stage{row.stage}-{row.protocol}",
        "facts": _facts(infos[0], seeds, len(fits), support),
        "seeds": len(fits),
        "first_seed": fits[0].seed,
        "baseline": estimate(first["majority_baseline"]),
        "metrics": [
            {
                "name": metric(name, classes).words,
                "what": metric(name, classes).meaning,
                **_over_seeds(row, name),
            }
            for name in names
        ],
        "methods": methods(
            {metric(name, classes).words: row.summary[name].method for name in names}
            | {
                f"{name} by class": figure.method
                for per_class in first["per_class"].values()
                for name, figure in (
                    ("sensitivity, specificity, PPV and NPV", per_class["sensitivity"]),
                    ("F1", per_class["f1"]),
                )
                if math.isfinite(figure.value)
            }
        ),
        "per_class": _per_class(first["per_class"]),
        "many": len(support) >= confusion.MANY,
        "absent": [name for name, count in support.items() if not count],
        "kept": _kept(infos[0]),
        "chose_epoch": infos[0].get("kept") == "best",
        "tuned": any("val_loss" in logs for info in infos for logs in info.get("history", ())),
        "figures": {
            "learning": svg(
                figures.learning_curves(
                    [info.get("history", []) for info in infos],
                    [info.get("best_epoch") for info in infos],
                )
            ),
            "confusion": svg(
                confusion.confusion_matrix(first["confusion_matrix"], first["class_names"])
            ),
            "roc": svg(figures.roc_curves(tests)),
            "pr": svg(figures.precision_recall_curves(tests)),
        },
        "confusion_words": confusion_words(first["confusion_matrix"], first["class_names"]),
    }


def _facts(
    info: Mapping[str, Any], seeds: str, count: int, support: Mapping[str, int]
) -> list[str]:
    facts = [f"seed {seeds}" if count == 1 else f"{count} seeds ({seeds})"]
    if "parameters" in info:
        facts.append(f"{info['parameters']:,} parameters")
    if "size" in info:
        resize = f", {info['resize']} resize" if "resize" in info else ""
        facts.append(f"{info['size']} × {info['size']} pixels{resize}")
    for role in ROLES[:2]:
        images = sum(mapping(mapping(info.get("counts")).get(role)).values())
        if images:
            facts.append(_images(images, role))
    facts.append(_images(sum(support.values()), "test"))
    return facts


def _images(count: int, role: str) -> str:
    return plural(count, f"{role} image")


def _kept(info: Mapping[str, Any]) -> str:
    monitor = info.get("monitor", "val_loss").removeprefix("val_")
    best = "lowest" if monitor == "loss" else "highest"
    figure = METRICS[monitor].words if monitor in METRICS else monitor
    kept = {"last": "of the last epoch", "best": f"of the epoch with the {best} tune {figure}"}
    return kept.get(info.get("kept", ""), "")


def _per_class(per_class: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for name, of_class in per_class.items():
        cells = {}
        for key in ("sensitivity", "specificity", "ppv", "npv", "f1"):
            missing = NO_IMAGE
            if of_class["support"]:
                missing = {
                    "ppv": "not defined: never named",
                    "npv": "not defined: always named",
                }.get(key, "not defined: no other class")
            cells[key] = estimate(of_class[key], missing=missing)
        lines.append({"name": name, "support": int(of_class["support"]), "figures": cells})
    return lines


def _over_seeds(row: results.Row, metric: str) -> dict[str, Any]:
    summary, percent = row.summary[metric], METRICS[metric].percent
    missing = "not defined: test images of one class only" if summary.count else NO_IMAGE
    cell = shown(summary.mean, summary.low, summary.high, percent=percent, missing=missing)
    spread = ""
    if summary.seeds > 1 and math.isfinite(summary.mean):
        spread = f"{number(summary.minimum, percent)} to {number(summary.maximum, percent)}"
        spread += f"; others: mean ± {number(summary.over_seeds, percent)}"
    return {"shown": cell, "spread": spread}


def _data(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts of every data set: its folders, then the roles that each protocol gives."""
    sets = []
    for name, facts in data.items():
        facts = mapping(facts)
        lines = [
            (f"folder {split}", mapping(counts))
            for split, counts in mapping(facts.get("counts")).items()
        ]
        lines += [
            (f"{protocol} protocol, {role}", mapping(counts))
            for protocol, roles in mapping(facts.get("roles")).items()
            for role, counts in mapping(roles).items()
        ]
        classes = _by_severity(label for _, counts in lines for label in counts)
        sets.append(
            {
                "name": name,
                "fingerprint": _plain(facts.get("fingerprint")),
                "notes": [str(note) for note in facts.get("notes") or ()],
                "classes": classes,
                "lines": [
                    {
                        "name": line,
                        "counts": [whole_number(counts.get(label, 0)) for label in classes],
                        "total": whole_number(sum(counts.values())),
                    }
                    for line, counts in lines
                ],
            }
        )
    return sets


def _by_severity(names: Iterable[str]) -> list[str]:
    labels = dict.fromkeys(names)
    for classes in (STAGE1_CLASSES, STAGE2_CLASSES):
        if labels and set(labels) <= set(classes):
            return list(classes)
    return list(labels)


def _fit(fit: results.Fit) -> dict[str, str]:
    info = fit.info
    best, rate = info.get("best_epoch"), info.get("images_per_second")
    return {
        "stage": str(fit.stage),
        "protocol": fit.protocol,
        "seed": str(fit.seed),
        "epochs": _plain(info.get("epochs_run")),
        "best epoch": "none" if best is None else str(best + 1),
        "parameters": whole_number(info.get("parameters")),
        "time": _seconds(info.get("seconds")),
        "images/s": UNKNOWN if rate is None else f"{rate:,.0f}",
    }


def _plain(value: Any) -> str:
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _seconds(value: Any) -> str:
    return pages.duration(value) if isinstance(value, int | float) else UNKNOWN
