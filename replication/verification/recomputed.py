"""What a run directory states, computed again from its own files; no model and no image is needed.

Every metric and interval follows from the predictions beside it. Digests tell whether models and
predictions are those that were written, fingerprints whether the images still are.
"""

import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.comparison import benchmark, ranking, report
from replication.comparison.candidates import Candidate, Cost
from replication.learning import recipes
from replication.measures import evaluation, triage
from replication.measures.predictions import Predictions
from replication.runs import environment, publication, results
from replication.runs.directory import RunDirectory
from replication.verification.figures import Checked, Rule, tables
from tfds_pap import copies, files, folders, layouts
from tfds_pap.errors import PapError

_RULE = Rule()

#: What tables are recomputed from.
_RECOMPUTED_FROM = ("fit.json", "predictions.csv")


def checks(run: RunDirectory) -> Iterator[Checked]:
    """Compares everything that follows from a run's own files.

    Args:
        run: Of `pap run`, `train`, `compare` or `benchmark`.

    Yields:
        What came out of each file.

    Raises:
        PapError: The directory holds no finished fit of these commands.
    """
    fits = sorted(run.path.glob("**/seed_*/fit.json"))
    if not fits:
        raise PapError(f"--run_dir={run.path}: expected finished fits (seed_*/fit.json), got none")
    whole = True
    for fit in fits:
        directory = fit.parent
        yield digests(run, directory)
        whole = whole and not any(_is_changed(directory / name) for name in _RECOMPUTED_FROM)
        if (directory / "metrics.json").exists():
            yield _metrics(run, directory)
    if not whole:
        # What readers refuse cannot be recomputed from, and the digests above say so.
        return
    if (run.path / "summary.csv").exists():
        source = run.manifest()["source"]
        rows = results.summary_rows(results.read_fits(run), source)
        yield table(run, "summary.csv", publication.summary_table(rows, source))
    if (run.path / benchmark.TABLE).exists():
        yield table(run, benchmark.TABLE, benchmark.table(run))
    if (run.path / "ranking.csv").exists():
        yield from _comparison(run)


def digests(run: RunDirectory, directory: Path, whole: Path | None = None) -> Checked:
    """Holds the files of a finished result against the digests beside them.

    Args:
        run: Of the result.
        directory: Where its files lie.
        whole: Outside of which no file is read; None takes the run's directory.
    """
    within = os.path.normpath(whole or run.path)
    checked = Checked(f"{directory.relative_to(run.path)}: digests")
    stated = files.kept_sums(directory)
    if not stated:
        checked.notes.append("none kept (made before fits had them); not looked at")
    for name, digest in stated.items():
        path = Path(os.path.normpath(directory / name))
        if not path.is_relative_to(within):
            now = "outside of the directory"
        else:
            now = files.sha256(path) if path.is_file() else "gone"
        checked.compare(name, digest, now, _RULE)
    return checked


def _is_changed(path: Path) -> bool:
    kept = files.kept_sums(path.parent).get(path.name)
    return kept is not None and (not path.is_file() or files.sha256(path) != kept)


def _metrics(run: RunDirectory, directory: Path) -> Checked:
    place = directory / "metrics.json"
    checked = Checked(str(place.relative_to(run.path)))
    if _is_changed(directory / "predictions.csv"):
        checked.notes.append("predictions.csv is not what was written; not recomputed")
        return checked
    # Not `files.read_json`, which refuses a changed file: here each figure is to be named.
    stated = json.loads(place.read_text("utf-8"))
    predictions = Predictions.read(directory / "predictions.csv")
    now = dict(evaluation.evaluate(predictions.select("test")))
    now["triage"] = triage.assess(predictions, (stated.get("triage") or {}).get("prevalence"))
    checked.compare("", stated, evaluation.jsonable(now), _RULE)
    return checked


def table(run: RunDirectory, name: str, now: pd.DataFrame) -> Checked:
    """Compares a table of a directory with what it should hold.

    Args:
        run: The directory.
        name: Of the table's file.
        now: What it should hold.
    """
    if not (run.path / name).exists():
        return Checked(name, different=["is gone"])
    # As a reader has it: what is not a number is text.
    again = pd.read_csv(io.StringIO(now.to_csv(index=False)))
    return tables(name, pd.read_csv(run.path / name), again, _RULE)


def json_files(name: str, then: Path, now: Path, rule: Rule) -> Checked:
    """Compares a JSON file of two directories.

    Args:
        name: Of the file.
        then: Where it lies as it is stated.
        now: Where it lies as it came out.
        rule: What counts as the same.
    """
    if not (now / name).exists():
        return Checked(name, different=["did not come out"])
    checked = Checked(name)
    # Not `files.read_json`, which refuses a changed file: here each figure is to be named.
    stated, made = (json.loads((folder / name).read_text("utf-8")) for folder in (then, now))
    checked.compare("", stated, made, rule)
    return checked


def _comparison(run: RunDirectory) -> Iterator[Checked]:
    """Makes ranking.csv, pairs.csv and leak.csv again; measured costs are taken over."""
    manifest = run.manifest()
    result = _read_comparison(run, manifest)
    with tempfile.TemporaryDirectory() as folder:
        report.write_tables(Path(folder), result, manifest)
        for name in ("ranking.csv", "pairs.csv", "leak.csv"):
            if (run.path / name).exists():
                yield table(run, name, pd.read_csv(Path(folder) / name))


def _read_comparison(run: RunDirectory, manifest: Mapping[str, Any]) -> ranking.Comparison:
    rows = pd.read_csv(run.path / "ranking.csv").drop_duplicates("backbone").set_index("backbone")
    scored: dict[str, list[Candidate]] = {}
    for cut in manifest["identity"]["cuts"]:
        scored[cut] = []
        for name, row in rows.iterrows():
            folders = sorted(
                (path.parent for path in (run.path / cut / str(name)).glob("seed_*/fit.json")),
                key=lambda path: int(path.name.removeprefix("seed_")),
            )
            runs = tuple(
                Predictions.read(folder / "predictions.csv").select("test") for folder in folders
            )
            if len(runs) != row.seeds:
                raise PapError(
                    f"{run.path / cut / str(name)}: expected {row.seeds} finished seeds as "
                    f"ranking.csv has, got {len(runs)}"
                )
            cost = Cost(*(row[of] for of in Cost.__dataclass_fields__))
            scored[cut].append(Candidate(str(name), row.weights, runs, cost))
    main, *others = scored
    return ranking.Comparison(
        title="",
        candidates=tuple(scored[main]),
        winner=str(rows.index[0]),
        winner_note="",
        design="",
        by_image=tuple(scored["image"]) if "image" in others else (),
        let_in=tuple(scored["let_in"]) if "let_in" in others else (),
    )


def packages(run: RunDirectory) -> list[str]:
    """Lists packages whose version is another one now: name, then, now."""
    stated = run.manifest().get("environment", {}).get("packages")
    if stated is None:
        return ["the manifest lists no packages (made before it did)"]
    return version_changes(stated, environment.packages())


def version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Compares two lists of versions.

    Example:
        >>> version_changes({"numpy": "2.4", "six": "1"}, {"numpy": "2.5"})
        ['numpy: then 2.4, now 2.5', 'six: then 1, now not installed']
    """
    absent = "not installed"
    return [
        f"{name}: then {then.get(name, absent)}, now {now.get(name, absent)}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def images(run: RunDirectory) -> Iterator[Checked]:
    """Compares the fingerprints of the images with those where the command found them.

    Args:
        run: The folders that its command names are looked for from the present folder.
    """
    manifest = run.manifest()
    typed = manifest.get("environment", {}).get("repeat", {}).get("arguments", [])
    stated = {name: value for name in _FLAGS if (value := flag(typed, name))}
    for name, data in manifest.get("data", {}).items():
        place = stated.get("folders" if name == "pap_folders" else "manual_dir", "")
        checked = Checked(f"images of {name}", beside=place)
        try:
            now = _fingerprint(name, stated, drawn=manifest.get("source") == "phantom")
        except (PapError, OSError) as error:
            checked.notes.append(f"not looked at: {error}")
        else:
            if now:
                checked.compare("fingerprint", data["fingerprint"], now, _RULE)
            else:
                checked.notes.append("not looked at: the manifest does not say where they are")
        yield checked


#: Of a command, what says which images it read.
_FLAGS = ("manual_dir", "folders", "layout", "groups_from", "ignore", "whole_fields")


def flag(arguments: Sequence[str], name: str) -> str:
    """Returns the value of a flag among arguments, the last one; "" where it is not there.

    Example:
        >>> flag(["--seeds=0,1", "--seeds=2", "x"], "seeds")
        '2'
    """
    value = ""
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if word.lstrip("-").startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word in (f"--{name}", f"-{name}"):
            value = "true" if following.startswith("-") else following
    return value


def _fingerprint(name: str, stated: Mapping[str, str], *, drawn: bool) -> str:
    """Returns the fingerprint of a data set's images as they are now; "" where none can be had."""
    if name == "pap_folders" and "folders" in stated:
        return folders.listing_fingerprint(
            layouts.read(
                copies.folder(stated["folders"]),
                stated.get("layout", "auto"),
                groups_from=stated.get("groups_from"),
                ignore=[one for one in stated.get("ignore", "").split(",") if one],
                fields=stated.get("whole_fields", "").lower() == "true",
            )
        )
    if name not in recipes.DATASETS.values():
        return ""
    # Imports TensorFlow.
    import tensorflow_datasets.public_api as tfds

    if drawn:
        return tfds.builder(f"{name}/phantom").phantom_fingerprint()
    if "manual_dir" not in stated:
        return ""
    builder = tfds.builder(f"{name}/original")
    tree = copies.folder(stated["manual_dir"], builder.TREE)
    if not tree.is_dir():
        raise PapError(f"{tree}: no such folder")
    return folders.fingerprint(tree, builder.CLASS_FOLDERS)
