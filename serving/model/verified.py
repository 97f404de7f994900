"""What an exported version states, computed again from its run; see `pap verify`.

Digests tell whether its files are those that were written. Where the run is still there, metadata
and model card are made of it once more, and the self-check of the export is repeated: the `.keras`
model and the SavedModel answer alike, as they did.
"""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replication.report import model_card
from replication.runs.directory import RunDirectory
from replication.verification import recomputed
from replication.verification.figures import Checked, Rule
from serving.model import exporting, metadata, self_check, version_manifest
from serving.server.errors import ServingError
from serving.store import model_config, publish
from tfds_pap.errors import PapError

_RULE = Rule()

#: Of metadata.json, what says when it was written.
_METADATA_RULE = Rule(ignored=frozenset({"exported"}))

#: What two networks may answer differently, and a network on another machine.
_ANSWERS = Rule(tolerance=self_check.TOLERANCE)


def checks(run: RunDirectory) -> Iterator[Checked]:
    """Compares everything that follows from a version's own files, from its run and its images.

    Args:
        run: `assets.extra` of a version, which holds its manifest.

    Yields:
        What came out of each file, of the labels and of the self-check.

    Raises:
        PapError: The manifest is damaged.
    """
    manifest = run.manifest()
    # The manifest lies in assets.extra, and speaks of the whole version.
    digests = recomputed.digests(run, run.path, run.path.parent)
    digests = dataclasses.replace(digests, place="files: digests")
    yield digests
    yield _labels(run.path.parent)
    stated = Checked("manifest.json: models")
    try:
        built = exporting.build(exporting.Options(**manifest["options"]))
    except (PapError, OSError, TypeError) as error:
        stated.notes.append(
            f"the run was not looked at, so that metadata, model card and self-check are not made "
            f"again: {error}"
        )
        yield stated
        return
    now = version_manifest.models(built.fit, built.graph)
    stated.compare("models", manifest["identity"]["models"], now, _RULE)
    yield stated
    yield _metadata(run.path, built)
    yield _card(run.path, built)
    if digests.different or stated.different:
        # A changed model is not loaded, and the lines above say so.
        return
    yield _self_check(run.path.parent, manifest, built)


def _labels(version: Path) -> Checked:
    """Labels of models.config lead to versions that are there."""
    checked = Checked(model_config.FILE_NAME)
    config = model_config.ModelConfig(version.parent)
    if not config.path.exists():
        checked.notes.append("not here: the version was published elsewhere, or copied")
        return checked
    there = publish.versions(version.parent)
    for label, number in sorted(config.labels().items()):
        shown = number if number in there else f"no version {number}"
        checked.compare(f"label {label}", number, shown, _RULE)
    for number in config.pinned():
        shown = number if number in there else f"no version {number}"
        checked.compare(f"served version {number}", number, shown, _RULE)
    return checked


def _metadata(folder: Path, built: exporting.Built) -> Checked:
    checked = Checked(metadata.FILE_NAME)
    try:
        # Not `files.read_json`, which refuses a changed file: here each figure is to be named.
        stated = json.loads((folder / metadata.FILE_NAME).read_text("utf-8"))
        now = json.loads(json.dumps(metadata.describe(built.run, built.fit, built.graph)))
        then, again = stated["run"], now["run"]
        # A run may have been widened since, and its command typed again.
        again["identity"] = {name: again["identity"].get(name) for name in then.get("identity", {})}
        for each in (stated, now):
            each["run"] = {name: each["run"].get(name) for name in ("identity", "data", "source")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        checked.different.append(f"not what an export writes: {' '.join(str(error).split())[:200]}")
        return checked
    checked.compare("", stated, now, _METADATA_RULE)
    return checked


def _card(folder: Path, built: exporting.Built) -> Checked:
    """The model card line by line, made once more of the run's fits."""
    name = "model_card.md"
    checked = Checked(f"{name} by the run")
    if not (folder / name).exists():
        checked.notes.append("the run had none when it was exported")
        return checked
    try:
        told = json.loads((folder / metadata.FILE_NAME).read_text("utf-8"))["run"]
        now = model_card.documents(built.run, told)[name].splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        checked.notes.append(f"not made again: {' '.join(str(error).split())[:200]}")
        return checked
    then = (folder / name).read_text("utf-8", "replace").splitlines()
    matcher = difflib.SequenceMatcher(None, then, now, autojunk=False)
    for _, first, last, start, stop in matcher.get_opcodes():
        pairs = itertools.zip_longest(then[first:last], now[start:stop], fillvalue="no line")
        for number, (one, other) in enumerate(pairs, start=first + 1):
            checked.compare(f"line {number}", one, other, _RULE)
    return checked


def _self_check(version: Path, manifest: dict[str, Any], built: exporting.Built) -> Checked:
    stated = manifest["self_check"]
    checked = Checked("self-check")
    data_dir = recomputed.flag(manifest["environment"]["repeat"]["arguments"], "data_dir")
    try:
        samples = self_check.samples(built.run, built.fit, stated["count"], data_dir or None)
        outcome = self_check.check(version, built.model, built.graph, samples)
    except (PapError, ServingError) as error:
        checked.different.append(str(error))
        return checked
    checked.notes += outcome.lines
    images = version_manifest.digests(samples.images)
    if images != stated["images"]:
        checked.notes.append(
            f"the export was checked on {stated['source']}, which are not at hand as they were; "
            "its own answers were not compared"
        )
        return checked
    for number, (then, now) in enumerate(
        zip(stated["probabilities"], outcome.probabilities.tolist(), strict=True)
    ):
        checked.compare(f"probabilities of image {number}", then, now, _ANSWERS)
    return checked


def again(stated: RunDirectory, now: RunDirectory, what: Rule) -> Iterator[Checked]:
    """Compares a version with that of the repeated command.

    Args:
        stated: `assets.extra` of the version.
        now: The same of that made by its command.
        what: Counts as the same.

    Yields:
        What came out of its files.
    """
    ignored = what.ignored | _METADATA_RULE.ignored
    what = dataclasses.replace(what, ignored=ignored)
    yield recomputed.json_files(metadata.FILE_NAME, stated.path, now.path, what)
    checked = Checked("manifest.json: models and self-check")
    for name in ("identity", "self_check"):
        checked.compare(name, stated.manifest()[name], now.manifest()[name], what)
    yield checked
