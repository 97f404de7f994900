"""What kind of directory is verified, and what computes its figures again."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from replication.runs.directory import RunDirectory
from replication.verification import recomputed, repeated, scans
from replication.verification.figures import Checked, Rule
from tfds_pap.errors import PapError

#: Kind -> module with `checks` and `again`. By name, so that nothing here imports finetune or
#: serving.
_MODULES: Mapping[str, str] = {
    "scan": "replication.verification.scans",
    "search": "finetune.search.verified",
    "export": "serving.model.verified",
}

#: Where an exported version keeps its manifest.
EXTRA = "assets.extra"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of directory.

    Attributes:
        name: "run" (of run, train, compare and benchmark), "scan", "search" or "export".
        checks: Compares what follows from the directory's own files.
        again: Compares a directory with that of the repeated command.
    """

    name: str
    checks: Callable[[RunDirectory], Iterator[Checked]]
    again: Callable[[RunDirectory, RunDirectory, Rule], Iterator[Checked]]


def of(run: RunDirectory) -> Kind:
    """Returns the kind of a directory.

    Args:
        run: From `directories`.

    Raises:
        PapError: If its manifest is none.
    """
    manifest = run.manifest()
    identity = manifest.get("identity")
    if not isinstance(identity, dict):
        raise PapError(f"{run.manifest_path}: expected an identity")
    if run.path.name == EXTRA:
        name = "export"
    elif "tuner" in identity:
        name = "search"
    elif "models" in identity and "stride" in identity:
        name = "scan"
    else:
        return Kind("run", _checks_of_run, repeated.checks)
    module = importlib.import_module(_MODULES[name])
    return Kind(name, module.checks, module.again)


def directories(path: Path) -> list[RunDirectory]:
    """Returns what is verified at a path: a directory of results, or each version of a model.

    A version that was exported before versions had a manifest has none here either.

    Args:
        path: What --run_dir names.

    Raises:
        PapError: If it holds versions of a model of which none has a manifest.
    """
    if (path / "manifest.json").exists():
        return [RunDirectory(path)]
    versions = [path] if (path / "saved_model.pb").exists() else []
    numbered = [one.parent for one in path.glob("*/saved_model.pb") if one.parent.name.isdigit()]
    versions += sorted(numbered, key=lambda version: int(version.name))
    runs = [RunDirectory(version / EXTRA) for version in versions]
    if not any(run.manifest_path.exists() for run in runs):
        raise PapError(
            f"--run_dir={path}: expected {EXTRA}/manifest.json in a version, got none (exported "
            "before versions had it)"
        )
    return runs


def _checks_of_run(run: RunDirectory) -> Iterator[Checked]:
    """Of a run, and of the scans with its models that lie in it."""
    yield from recomputed.checks(run)
    yield from recomputed.images(run)
    for path in scans.below(run):
        for checked in scans.checks(RunDirectory(path)):
            yield dataclasses.replace(checked, place=f"{path.name}/{checked.place}")
