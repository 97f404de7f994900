"""A run's own command once more, in another directory, and what came out beside what is stated."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from replication.runs.directory import RunDirectory
from replication.verification import figures
from replication.verification.figures import Checked, Rule
from tfds_pap import commands, files, redaction
from tfds_pap.errors import PapError

#: Commands that are repeated, and the flag that names the directory of each.
PROGRAMS: Mapping[str, str] = {
    "replication.run": "run_dir",
    "replication.compare": "run_dir",
    "replication.benchmark": "run_dir",
    "finetune.train": "run_dir",
    "replication.scan": "scan_dir",
    "finetune.search": "search_dir",
    "serving.export": "serving_dir",
}

#: Of these, those that train nothing.
_UNTRAINED = ("replication.scan", "serving.export")

#: Flags that are not taken from a manifest: they read others from a file, leave out errors, start
#: a debugger, overwrite a file, or ask a cluster, whose answers are code.
_NOT_TAKEN = frozenset(
    {
        *("flagfile", "undefok", "run_with_pdb", "pdb", "pdb_post_mortem", "run_with_profiling"),
        *("profile_file", "use_cprofile_for_profiling", "log_dir", "cluster"),
    }
)

#: How far what a network says may be off when it is asked again.
_ANSWERS = 1e-5

#: Said of a row beside its figures, or measured on the machine of the moment.
ABOUT = frozenset({"machine", "commit", "packages", "date", "command", "device"})
_MEASURED = frozenset({"images_per_second"})

#: Tables of a run directory, and the columns that name a row.
_TABLES: Mapping[str, Sequence[str]] = {
    "summary.csv": ("stage", "model", "protocol", "metric"),
    "ranking.csv": ("backbone", "metric"),
    "pairs.csv": ("first", "second"),
    "leak.csv": ("backbone", "metric"),
    "benchmark.csv": ("model", "cut"),
}


def arguments(run: RunDirectory, scratch: Path, *, urls: bool = False) -> tuple[str, list[str]]:
    """Returns the module that was run, and its arguments with other places to write to.

    Args:
        run: What is repeated.
        scratch: Below which the repeated command writes.
        urls: Whether it may name URLs.

    Raises:
        PapError: The manifest names no command, or one that is not repeated, or a flag that is
            not taken from a manifest.
    """
    repeat = run.manifest().get("environment", {}).get("repeat")
    if repeat is None:
        raise PapError(
            f"{run.manifest_path}: expected environment.repeat, the command that repeats the run "
            "(made before manifests had it)"
        )
    program, typed = repeat["program"], list(repeat["arguments"])
    # A manifest is a file that others may have written: nothing else is started for it.
    if program not in PROGRAMS:
        raise PapError(
            f"{run.manifest_path}: {program} is not repeated, only {', '.join(PROGRAMS)}"
        )
    for word in typed:
        if redaction.is_redacted(word):
            raise PapError(
                f"{run.manifest_path}: {word} is not whole, since secrets are not kept; type the "
                "command with the URL, and compare"
            )
        name = word.lstrip("-").partition("=")[0]
        # After a bare -- what follows are no flags.
        is_flag = word.startswith("-") and word.lstrip("-") != "" and name in _NOT_TAKEN
        if word == "--" or (is_flag and word.partition("=")[2] != "local"):
            raise PapError(
                f"{run.manifest_path}: {word} is not repeated; type the command without it, and "
                "compare"
            )
        if "://" in word and not urls:
            raise PapError(f"{run.manifest_path}: {word} is not asked without --urls")
    typed.append(f"--{PROGRAMS[program]}={scratch / 'run'}")
    if any(word.lstrip("-").startswith("features_dir") for word in typed):
        # Stored features would be taken for granted.
        typed.append(f"--features_dir={scratch / 'features'}")
    return program, typed


def start(command: Sequence[str], folder: Path | None = None) -> None:
    """Runs a Python command to its end; what it prints is shown.

    Args:
        command: Arguments of Python.
        folder: Where it runs, and from where it imports; None is here.

    Raises:
        PapError: It ended with another status than 0.
    """
    environment = dict(os.environ)
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=False)
    if done.returncode in (-signal.SIGINT, commands.INTERRUPTED):
        raise KeyboardInterrupt
    if done.returncode:
        raise PapError(f"the repeated command ended with status {done.returncode}")


def rule(run: RunDirectory, changes: Sequence[str]) -> tuple[Rule, str]:
    """Returns what must be the same, and why.

    Args:
        run: What is repeated.
        changes: Versions that differ.
    """
    ignored = ABOUT | _MEASURED
    if run.manifest()["environment"]["repeat"]["program"] in _UNTRAINED:
        return Rule(tolerance=_ANSWERS, ignored=ignored), "nothing is trained"
    if not run.manifest()["identity"].get("deterministic"):
        why = "the run was made without --deterministic, so that two trainings differ"
        return Rule(by_interval=True, ignored=ignored), why
    if changes:
        why = "packages differ, so that not even --deterministic gives equal weights"
        return Rule(by_interval=True, ignored=ignored), why
    return Rule(ignored=ignored), "the run was made with --deterministic and these packages"


def checks(stated: RunDirectory, again: RunDirectory, what: Rule) -> Iterator[Checked]:
    """Compares a run directory with that of the repeated command.

    Args:
        stated: The run.
        again: Made by its command.
        what: Counts as the same.

    Yields:
        What came out of each file, and of the images.
    """
    yield _manifests(stated.manifest(), again.manifest())
    for name in ("predictions.csv", "metrics.json"):
        for path in sorted(stated.path.glob(f"**/seed_*/{name}")):
            place = path.relative_to(stated.path)
            yield _compared(str(place), path, again.path / place, what)
    for name in _TABLES:
        if name == "pairs.csv" and what.by_interval:
            # The better one of a pair comes first, and may be the other one.
            continue
        if (stated.path / name).exists():
            yield _compared(name, stated.path / name, again.path / name, what)


def _compared(place: str, then: Path, now: Path, what: Rule) -> Checked:
    if not now.exists():
        lack = "the repeated command did not make it (another command may have added it)"
        return Checked(place, different=[lack])
    if then.name == "predictions.csv":
        return figures.predictions(place, then, now, what)
    if then.suffix == ".csv":
        return figures.tables(place, pd.read_csv(then), pd.read_csv(now), what, _TABLES[place])
    checked = Checked(place)
    checked.compare("", files.read_json(then), files.read_json(now), what)
    return checked


def _manifests(then: Mapping, now: Mapping) -> Checked:
    checked = Checked("manifest.json: images, roles, audit")
    for name in ("data", "audit"):
        checked.compare(name, then.get(name, {}), now.get(name, {}), Rule())
    return checked
