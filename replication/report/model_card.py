"""Model card and CLAIM checklist of a run, from its manifest, fits and predictions.

The card has the form of Mitchell et al., "Model cards for model reporting", FAT* 2019. The
checklist numbers its items as the 2024 update of CLAIM does (Tejani et al., Radiology: Artificial
Intelligence 2024; 6(4): e240300; first Mongan, Moy and Kahn, 2020; 2(2): e200029), and words them
anew. What a run does not know is written "unknown" in both, never left out.
"""

import importlib.resources
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import jinja2

from replication.drawing import pages
from replication.drawing.pages import UNKNOWN, mapping, memory, whole_number
from replication.drawing.shown import number
from replication.measures import class_figures, published
from replication.measures.names import METRICS, metric
from replication.report.answer import answer
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import files as file_writing

#: File name and template of each document.
_DOCUMENTS = {
    "model_card.md": "model_card.md.j2",
    "claim_checklist.md": "claim_checklist.md.j2",
}

#: Fewer test images of a class than this are named as a caveat.
_FEW_IMAGES = 30

_IMAGES = {
    "original": "the papers' own images, as their authors published them",
    "phantom": "phantoms: drawings made by this package, not cells",
    "stand-in": "real images that are not the papers'",
    "undeclared": "images of which the command's user did not declare whose they are",
    UNKNOWN: "unknown: the manifest does not say whose images these are",
}
_BY_CLASS = ("sensitivity", "specificity", "ppv", "npv", "f1")
_KEPT = {"last": "of the last epoch", "best": "of the best epoch on the tune images"}


def write(run: RunDirectory) -> list[Path]:
    """Writes `model_card.md` and `claim_checklist.md` into a run directory.

    Args:
        run: Holds a manifest and finished fits; perhaps none yet.

    Returns:
        The paths of the two files: CommonMark with tables, the same for the same run.

    Raises:
        PapError: This is no run directory, or one of its files is not readable.
        ValueError: Predictions are not readable, or the seeds were tested on different images.
    """
    paths = []
    for name, text in documents(run).items():
        paths.append(run.path / name)
        file_writing.write_atomically(paths[-1], text)
    return paths


def documents(run: RunDirectory, manifest: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns the text of each document by the name of its file; errors as of `write`.

    Args:
        run: Holds a manifest and finished fits; perhaps none yet.
        manifest: An earlier one of the run; None takes that of today.
    """
    context = _context(run, run.manifest() if manifest is None else manifest)
    environment = jinja2.Environment(
        autoescape=False,  # Markdown, escaped by `_text`.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(text=_text, estimate=_estimate)
    templates = importlib.resources.files("replication.report")
    texts = {}
    for name, template in _DOCUMENTS.items():
        text = templates.joinpath(template).read_text("utf-8")
        rendered = environment.from_string(text).render(context)
        texts[name] = re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"
    return texts


def _context(run: RunDirectory, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the templates show; texts from outside are escaped."""
    fits = results.read_fits(run)
    source = str(manifest.get("source"))
    source = source if source in _IMAGES else UNKNOWN
    rows = results.summary_rows(fits, pages.source(manifest))
    studies = []
    for row in rows:
        same = [fit for fit in fits if (fit.stage, fit.protocol) == (row.stage, row.protocol)]
        studies.append(_study(row, same))
    environment = mapping(manifest.get("environment"))
    data = mapping(manifest.get("data"))
    return {
        "announcement": _text(pages.announcement(manifest)),
        "answer": answer(rows, pages.source(manifest)),
        "source": source,
        "images": _IMAGES[source],
        "holder": "the papers' authors" if source == "original" else "whoever supplied the images",
        "studies": studies,
        "data": _data(data, mapping(manifest.get("audit"))),
        "classes": [_list(names) for names in dict.fromkeys(tuple(s["classes"]) for s in studies)],
        "methods": list(
            dict.fromkeys(
                method
                for study in studies
                for method in [m["method"] for m in study["overall"]] + study["class_methods"]
            )
        ),
        "at_class_shares": class_figures.AT_CLASS_SHARES,
        "positive": _text(rows[-1].positive if rows else "HSIL+"),
        "caveats": _caveats(source, studies),
        "commit": _plain(environment.get("git_commit")),
        "time": _plain(environment.get("time")),
        "command": _command(environment.get("command")),
        "environment": {
            name: _plain(environment.get(name))
            for name in ("device", "precision", "xla", "python", "versions")
        },
        "flags": _flags(mapping(manifest.get("identity"))),
        "weights": _weights(mapping(manifest.get("identity"))),
        "durations": "; ".join(
            f"{_text(name)}: {value:,.0f} s"
            for name, value in mapping(manifest.get("durations")).items()
        )
        or UNKNOWN,
        "memory": memory(manifest.get("peak_memory_mib")),
    }


def _study(row: results.Row, fits: Sequence[results.Fit]) -> dict[str, Any]:
    """One protocol of one stage; figures by class are of the first seed, as in the report."""
    first = fits[0]
    info = first.info
    metrics = _metrics(first)
    triage = mapping(metrics.get("triage"))
    per_class = mapping(metrics.get("per_class"))
    shown = [name for name in METRICS if name in row.summary]
    classes = first.predictions.classes
    accuracy = row.summary["accuracy"]
    return {
        "name": _text(row.name),
        "stage": row.stage,
        "protocol": _text(row.protocol),
        "label": f"Stage {row.stage}, {_text(row.protocol)} protocol",
        "seeds": _list(str(fit.seed) for fit in fits),
        "seed_count": len(fits),
        "first_seed": first.seed,
        "model_files": _list(
            _text(fit.model_path.relative_to(fit.directory.parents[2])) for fit in fits
        ),
        "parameters": whole_number(info.get("parameters")),
        "size": _plain(info.get("size")),
        "resize": _plain(info.get("resize")),
        "epochs": _list(_plain(fit.info.get("epochs_run")) for fit in fits),
        "trained": _trained(info),
        "kept": _KEPT.get(str(info.get("kept")), UNKNOWN),
        "best_epochs": _list(_epoch(fit.info.get("best_epoch")) for fit in fits),
        "classes": list(map(_text, first.predictions.class_names)),
        **_roles(first),
        "published": _published(row.published),
        "published_note": _text(f"({row.published.note}; {row.published.source})"),
        "verdict": _text(row.verdict.partition(" (measured")[0]),
        "accuracy": _over_seeds(accuracy, True),
        "images": accuracy.count,
        "overall": [
            {
                "name": _text(metric(name, classes).words),
                "method": _text(row.summary[name].method),
                "value": _over_seeds(row.summary[name], METRICS[name].percent),
                "spread": _spread(row.summary[name], METRICS[name].percent),
                "images": f"{row.summary[name].count:,}",
            }
            for name in shown
        ],
        "by_class": [
            {
                "name": _text(name),
                "images": figures.get("support", UNKNOWN),
                "figures": [_estimate(figures.get(key)) for key in _BY_CLASS],
            }
            for name, figures in per_class.items()
        ],
        "rare": [
            f"{_text(name)} {figures['support']}"
            for name, figures in per_class.items()
            if figures["support"] < _FEW_IMAGES
        ],
        "remarks": list(map(_text, row.remarks)),
        "baseline": _estimate(metrics.get("majority_baseline")),
        "mistakes": _mistakes(metrics),
        "class_methods": list(
            dict.fromkeys(
                _text(figures[key]["method"])
                for figures in per_class.values()
                for key in _BY_CLASS
                if figures[key]["value"] is not None
            )
        ),
        # Raw, as `calibration` and `triage` write them; the template escapes and rounds.
        "calibration": mapping(metrics.get("calibration") or triage.get("calibration")),
        "operating_points": mapping(triage.get("operating_points")),
        "risk_coverage": mapping(triage.get("risk_coverage")),
    }


def _metrics(fit: results.Fit) -> Mapping[str, Any]:
    path = fit.directory / "metrics.json"
    return file_writing.read_json(path) if path.exists() else {}


def _roles(fit: results.Fit) -> dict[str, Any]:
    """Which image had which role, how it got it, and whether a group is on both sides."""
    counts = mapping(fit.info.get("counts"))
    groups = {}
    for role in ("tune", "test"):
        rows = [n for n, split in enumerate(fit.predictions.splits) if split == role]
        groups[role] = [fit.predictions.groups[n] for n in rows]
        if role == "test":
            folders = {fit.predictions.ids[n].partition("/")[0] for n in rows}
    everywhere = groups["tune"] + groups["test"]
    groups_known = bool(everywhere) and all(everywhere)
    within = folders == {"train"}
    if within:
        cut = (
            "the test images are a random fifth of the train folder, cut by image, as the authors "
            "did; there is no tune role"
        )
    elif not groups["tune"]:
        cut = "there is no tune role: the whole train folder trains"
    elif fit.protocol == "paper":
        cut = "tune is a fifth of the train folder, drawn at random by image, as the authors did"
    elif groups_known:
        cut = "tune is about a fifth of the train folder, cut by group and stratified by class"
    else:
        cut = (
            "tune is a fifth of the train folder, cut by image and stratified by class, as not "
            "every group is known"
        )
    both = len(set(groups["tune"]) & set(groups["test"]))
    if not groups_known:
        disjoint = "by image; whether by patient, slide or field is unknown: not every group is"
    elif not groups["tune"]:
        disjoint = (
            f"the test images are of {len(set(groups['test']))} groups; there is no tune role"
        )
    else:
        disjoint = (
            f"tune ({len(set(groups['tune']))} groups) and test ({len(set(groups['test']))} "
            f"groups) share {both or 'no'} group{'s' * (both > 1)}"
        )
        if fit.protocol == "paper":
            disjoint += "; tune was cut by image, so that one group may lie in train and tune"
    return {
        "cut": cut,
        "groups_known": groups_known,
        "disjoint": disjoint,
        "folders": _list(sorted(map(_text, folders))),
        "roles": {
            role: {_text(name): count for name, count in mapping(counts.get(role)).items()}
            for role in ("train", "tune", "test")
        },
    }


def _data(data: Mapping[str, Any], audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    sets = []
    for name, facts in data.items():
        facts = mapping(facts)
        folders = {
            _text(split): {_text(label): count for label, count in mapping(counts).items()}
            for split, counts in mapping(facts.get("counts")).items()
        }
        sets.append(
            {
                "name": _text(name),
                "fingerprint": _plain(facts.get("fingerprint")),
                "groups": _groups(facts.get("groups")),
                "notes": [_text(note) for note in facts.get("notes") or ()],
                "folders": folders,
                "total": sum(sum(counts.values()) for counts in folders.values()) or UNKNOWN,
                "audit": _text(
                    mapping(audit.get(name)).get("line")
                    or "unknown: the manifest holds no audit for duplicates of this data set"
                ),
            }
        )
    return sets


def _groups(count: Any) -> str:
    if count is None:
        return UNKNOWN
    return f"{count:,}" if count else "unknown: no image names its patient, slide or field"


def _caveats(source: str, studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know, and of which stage and protocol."""
    of: dict[str, list[str]] = {}
    for study in studies:
        seeds = study["seed_count"]
        if seeds < 5:
            few = "one seed says" if seeds == 1 else f"{seeds} seeds say"
            of.setdefault(f"{few} little of others", []).append(study["label"])
        if study["rare"]:
            rare = f"figures of a class with few test images say little ({_list(study['rare'])})"
            of.setdefault(rare, []).append(study["label"])
        if not study["groups_known"]:
            crops = (
                "groups are unknown, so that crops of one patient may lie in train and test, and "
                "the intervals, which take images as independent, are too narrow"
            )
            of.setdefault(crops, []).append(study["label"])
    caveats = [remark for study in studies for remark in study["remarks"]]
    caveats += [f"{'; '.join(labels)}: {caveat}." for caveat, labels in of.items()]
    if source != "original":
        why = {
            "undeclared": "whose images these are was not declared",
            UNKNOWN: "whose images these are is unknown",
        }.get(source, "the images are not the papers'")
        caveats.insert(0, f"The figures replicate nothing: {why}.")
    if any(study["protocol"] == "paper" for study in studies):
        caveats.append(
            "The paper protocol repeats the authors' defects on purpose (docs/defects.md, D1 to "
            "D8); its models are there to be compared, not used."
        )
    return caveats


def _mistakes(metrics: Mapping[str, Any]) -> str:
    """The three most frequent confusions."""
    names, matrix = metrics.get("class_names"), metrics.get("confusion_matrix")
    if not names or not matrix:
        return UNKNOWN
    wrong = [
        (-matrix[i][j], i, j)
        for i in range(len(names))
        for j in range(len(names))
        if i != j and matrix[i][j]
    ]
    lines = [f"{_text(names[i])} named {_text(names[j])}: {-n}" for n, i, j in sorted(wrong)[:3]]
    return _list(lines) if lines else "none: every test image was named right"


def _published(figure: published.Published) -> str:
    if figure.value is None:
        return "not published"
    low, high = figure.interval or (None, None)
    interval = _interval(low, high, percent=True)
    ends = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    return f"{' to '.join(number(end, True) for end in ends)} % {interval}"


def _over_seeds(summary: Any, percent: bool) -> str:
    if not math.isfinite(summary.mean):
        return "not defined"
    return _figure(summary.mean, summary.low, summary.high, percent)


def _spread(summary: Any, percent: bool) -> str:
    if summary.seeds == 1 or not math.isfinite(summary.mean):
        return "–"
    ends = f"{number(summary.minimum, percent)} to {number(summary.maximum, percent)}"
    return f"{ends}; other seeds: mean ± {number(summary.over_seeds, percent)} (Student)"


def _estimate(figure: Any, percent: bool = True) -> str:
    """A figure as metrics.json has it, where what is not defined is null."""
    if not figure:
        return UNKNOWN
    if figure["value"] is None:
        return "not defined"
    return _figure(figure["value"], figure["low"], figure["high"], percent)


def _figure(value: float, low: float | None, high: float | None, percent: bool) -> str:
    return f"{number(value, percent)}{' %' * percent} {_interval(low, high, percent)}"


def _interval(low: float | None, high: float | None, percent: bool) -> str:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "(no interval)"
    return f"({number(low, percent)} to {number(high, percent)})"


def without_folders(command: str) -> str:
    """Returns a command line without the folders of the machine that it ran on."""
    words = []
    for word in command.split():
        flag, equals, value = word.partition("=")
        words.append(flag + equals + _file_name(value) if equals else _file_name(word))
    return " ".join(words)


def _command(command: Any) -> str:
    return _text(without_folders(str(command))) if command else UNKNOWN


def _file_name(value: str) -> str:
    # Splits at both kinds of slash.
    return PureWindowsPath(value).name if re.search(r"[/\\]", value) else value


def _flags(identity: Mapping[str, Any]) -> str:
    return _list(
        f"{_text(name)} {'by default' if value is None else _text(_file_name(_plain(value)))}"
        for name, value in identity.items()
        if not name.startswith("data of stage")  # Shown as fingerprints.
    )


def _trained(info: Mapping[str, Any]) -> str:
    """Optimizer, learning rate and batch size of a fit."""
    if "optimizer" not in info:
        return UNKNOWN
    rate, batch = info["learning_rate"], info["batch_size"]
    return f"{info['optimizer']}, learning rate {rate:g}, batches of {batch}"


def _weights(identity: Mapping[str, Any]) -> str:
    if "weights" not in identity:
        return "unknown: the manifest names no weights"
    drawn = "random, from the seed"
    weights = identity["weights"]
    return f"{_text(_file_name(str(weights)))} for the backbone, else {drawn}" if weights else drawn


def _list(items: Any) -> str:
    return ", ".join(items) or UNKNOWN


def _plain(value: Any) -> str:
    if value is None or value in ("", {}):
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(name)} {_plain(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _text(value)


def _epoch(value: Any) -> str:
    return "none" if value is None else str(value + 1)


def _text(value: Any) -> str:
    """Escapes what Markdown would take for markup; underscores inside a word are none."""
    text = " ".join(str(value).split())
    return re.sub(r"[\\`*<>\[\]|~&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
