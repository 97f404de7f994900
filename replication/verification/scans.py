"""What a scan directory states, computed again from its scores, its cells and the truth.

Places and scores of cells follow from the score of every ROI, counts and slide-level scores from
the cells, recall and precision from the truth. What stage 1 and stage 2 said needs the models, and
so the command once more (--again); digests tell whether it is what was written.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replication.fields import archive, scan_directory, scan_evaluation
from replication.fields.find import stages, summary
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.judge.counts import Detections
from replication.fields.judge.evaluation import evaluate
from replication.fields.read.field import FieldError
from replication.fields.scanned import EVALUATION, FOLDER, ScannedField, scanned_fields
from replication.measures.decisions import Decision
from replication.runs import results
from replication.runs.directory import RunDirectory
from replication.verification import recomputed
from replication.verification.figures import TOLERANCE, Checked, Rule, tables
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

_RULE = Rule()

#: A cell, in tables: the middle of its ROI.
_PLACE = ("x", "y")

#: Of field.json, what says where and when a field was read.
_ABOUT = frozenset({"id", "path", "file", "truth", "seconds"})


def below(run: RunDirectory) -> list[Path]:
    """Returns the scans that lie in a run, which made them with its own models."""
    return sorted(path.parent for path in run.path.glob(f"{FOLDER}_*/manifest.json"))


def checks(run: RunDirectory) -> Iterator[Checked]:
    """Compares everything that follows from a scan's own files, from truth and from its models.

    Args:
        run: Of `pap scan`, or a scan in a run.

    Yields:
        What came out of each file.

    Raises:
        PapError: The directory holds no finished field.
    """
    manifest = run.manifest()
    names = manifest.get("fields")
    if not names:
        raise PapError(f"--run_dir={run.path}: expected finished fields (manifest.json), got none")
    whole = True
    for name in names:
        folder = run.path / "fields" / name
        digests = recomputed.digests(run, folder)
        whole = whole and not digests.different
        yield digests
        if (folder / "field.json").exists():
            yield from _field(folder, manifest)
    yield _models(run, manifest)
    if not whole:
        # What readers refuse cannot be summed up, and the digests above say so.
        return
    try:
        summaries = scan_directory.summaries(run)
    except FieldError as error:
        yield Checked("fields.csv, cells.csv", notes=[f"not summed up again: {error}"])
    else:
        for name, table in summaries.items():
            yield recomputed.table(run, name, table)
    if (run.path / archive.TABLE).exists():
        yield _archive(run)
    if (run.path / EVALUATION).exists():
        yield _evaluation(run)


def _field(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Checked]:
    """A field's cells by its scores, and `field.json` by its cells."""
    place = f"fields/{folder.name}"
    try:
        # Not `files.read_json`, which refuses a changed file: here each figure is to be named.
        info = json.loads((folder / "field.json").read_text("utf-8"))
        classes = ScannedField(folder, info).classes
        stated = pd.read_csv(folder / "cells.csv")
        cells = Cells.of_table(stated, classes)
        # Not into memory: a header may tell any shape.
        scores = np.load(folder / "scores.npy", mmap_mode="r")
        yield _places(f"{place}/cells.csv by scores.npy", stated, scores, info, manifest)
        yield _answers(f"{place}/cells.csv by its probabilities", stated, cells, manifest)
        yield _info(f"{place}/field.json", info, cells, scores, manifest)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        yield Checked(place, different=[f"not what a scan writes: {why}"])


def _places(
    place: str,
    stated: pd.DataFrame,
    scores: np.ndarray,
    info: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> Checked:
    settings, lattice = manifest["settings"], Lattice(**info["lattice"])
    if scores.shape != (lattice.rows, lattice.columns):
        expected = (lattice.rows, lattice.columns)
        return Checked(place, different=[f"{expected} scores are stated, there are {scores.shape}"])
    kept = Detections.of_scores(
        scores,
        lattice,
        threshold=settings["threshold"],
        radius=settings["radius"],
        scale=info["scale"],
    )
    now = pd.DataFrame({"x": kept.x, "y": kept.y, "score": kept.scores})
    return tables(place, _named(stated[[*now.columns]]), _named(now), _RULE, _PLACE)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Places as they are written, in six digits."""
    return table.assign(**{axis: [f"{value:.6g}" for value in table[axis]] for axis in _PLACE})


def _answers(
    place: str, stated: pd.DataFrame, cells: Cells, manifest: Mapping[str, Any]
) -> Checked:
    made = dict(manifest["identity"]["decision"])
    declared = Classes.from_json(made["declared"]) if made.get("declared") else None
    decision = Decision(
        tuple(made["labels"]), made["temperature"], made["threshold"], declared or cells.classes
    )
    # Probabilities are written in six digits, which a temperature below 1 multiplies.
    tolerance = TOLERANCE / min(decision.temperature or 1.0, 1.0)
    now = stated[[*_PLACE]].assign(
        **{"class": cells.labels},
        hsil_plus=decision.hsil_plus(cells.probabilities),
        abstain=_abstains(decision, cells, tolerance),
    )
    then = stated[[*now.columns]]
    return tables(place, _named(then), _named(now), Rule(tolerance=tolerance), _PLACE)


def _abstains(decision: Decision, cells: Cells, tolerance: float) -> np.ndarray:
    """Whether the model abstains, int `[n]`; as stated where six digits cannot tell."""
    if decision.threshold is None:
        return np.zeros(len(cells), int)
    below, above = (
        dataclasses.replace(decision, threshold=decision.threshold + step).abstains(
            cells.probabilities
        )
        for step in (-tolerance, tolerance)
    )
    return np.where(below == above, below, cells.abstain).astype(int)


def _info(
    place: str,
    info: Mapping[str, Any],
    cells: Cells,
    scores: np.ndarray,
    manifest: Mapping[str, Any],
) -> Checked:
    checked, settings = Checked(place), manifest["settings"]
    now = {
        "rois": Lattice(**info["lattice"]).rois,
        "detections": int((scores >= settings["threshold"]).sum()),
        **summary.summary(cells),
    }
    for name, value in now.items():
        checked.compare(name, info[name], value, _RULE)
    for name in ("roi", "stride"):
        checked.compare(f"lattice.{name}", info["lattice"][name], settings[name], _RULE)
    try:
        state = scan_directory.file_state(info["path"])
    except FieldError as error:
        checked.notes.append(f"whether it changed was not looked at: {error}")
    except (PapError, OSError):
        checked.notes.append(f"{info['path']} is not here; whether it changed was not looked at")
    else:
        # A copy has another time.
        checked.compare("file", info["file"], state, Rule(ignored=frozenset({"modified_ns"})))
    return checked


def _models(run: RunDirectory, manifest: Mapping[str, Any]) -> Checked:
    """What is said of the models, by themselves where their runs are here."""
    checked = Checked("manifest.json: models and settings")
    stated, identity = manifest["models"], manifest["identity"]
    for stage, digest in identity["models"].items():
        checked.compare(f"{stage}.sha256", stated[stage]["sha256"], digest, _RULE)
    for name, value in manifest["settings"].items():
        if name != "method":
            checked.compare(f"settings.{name}", value, identity.get(name), _RULE)
    repeat = manifest.get("environment", {}).get("repeat", {})
    places = {name: recomputed.flag(repeat.get("arguments", []), name) for name in stated}
    if repeat.get("program") == "replication.run":
        places = dict.fromkeys(stated, str(run.path.parent))
    places["stage2"] = places["stage2"] or places["stage1"]
    try:
        fits = [
            results.choose_fits(
                RunDirectory(Path(places[name]).expanduser()), about["protocol"], about["seed"]
            )[number]
            for number, (name, about) in enumerate(sorted(stated.items()), start=1)
        ]
        now = stages.about(*fits)
    except (PapError, OSError, KeyError) as error:
        checked.notes.append(f"the runs of the models were not looked at: {error}")
    else:
        checked.compare("models", stated, now, _RULE)
    return checked


def _archive(run: RunDirectory) -> Checked:
    """How many cells a scan on a cluster noted of each field that it read."""
    checked = Checked(archive.TABLE)
    table = pd.read_csv(run.path / archive.TABLE, dtype=str, keep_default_na=False)
    noted = dict(zip(table["field"], table["cells"], strict=True))
    for one in scanned_fields(run):
        if cells := noted.get(one.info["path"]):
            checked.compare(f"cells of {one.info['path']}", cells, str(one.info["cells"]), _RULE)
    return checked


def _evaluation(run: RunDirectory) -> Checked:
    told = sorted({one.info["truth"] for one in scanned_fields(run) if one.info["truth"]})
    checked = Checked(EVALUATION, beside=", ".join(told))
    stated = json.loads((run.path / EVALUATION).read_text("utf-8"))
    try:
        fields = [field for _, field in scan_evaluation.annotated_fields(run) if field]
    except (PapError, OSError) as error:
        checked.notes.append(f"not computed again, as the truth cannot be had: {error}")
        return checked
    if not fields:
        checked.different.append("is stated, and no field is annotated")
        return checked
    as_read = stated.get("match_radius_of") == "the field as read"
    now = evaluate(
        fields,
        threshold=run.manifest()["settings"]["threshold"],
        complete=stated["complete"],
        match_radius=None if as_read else stated["match_radius"],
    )
    checked.compare("", stated, now.json(), _RULE)
    return checked


def again(stated: RunDirectory, now: RunDirectory, what: Rule) -> Iterator[Checked]:
    """Compares a scan with that of the repeated command, field by field.

    Args:
        stated: The scan.
        now: Made by its command; drawn fields lie elsewhere, so that the order tells which is
            which.
        what: Counts as the same.

    Yields:
        What came out of each field, and of the truth.
    """
    names, others = (run.manifest()["fields"] for run in (stated, now))
    if len(names) != len(others):
        lack = f"{len(names)} fields are stated, there are {len(others)}"
        yield Checked("manifest.json", different=[lack])
        return
    what = dataclasses.replace(what, ignored=what.ignored | _ABOUT)
    for one, other in zip(names, others, strict=True):
        then, made = stated.path / "fields" / one, now.path / "fields" / other
        checked = recomputed.json_files("field.json", then, made, what)
        one_map, other_map = (np.load(folder / "scores.npy").tolist() for folder in (then, made))
        checked.compare("scores", one_map, other_map, what)
        checked.place = f"fields/{one}"
        yield checked
        before, after = (_named(pd.read_csv(folder / "cells.csv")) for folder in (then, made))
        yield tables(f"fields/{one}/cells.csv", before, after, what, _PLACE)
    if (stated.path / EVALUATION).exists():
        yield recomputed.json_files(EVALUATION, stated.path, now.path, what)
