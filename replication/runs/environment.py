"""What a reader needs to judge or repeat a run: command, versions, commit, device."""

import datetime
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from replication.runs.device import DevicePolicy
from tfds_pap import redaction

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-tuner",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
)


def describe(policy: DevicePolicy | None, program: str = "replication.run") -> dict[str, Any]:
    """Returns what a reader needs to judge or repeat a run: versions, commit, device.

    Args:
        policy: The device policy in force; None where none is set.
        program: The module that was run.
    """
    described = {
        "command": redaction.redacted(f"python -m {program} {shlex.join(sys.argv[1:])}".strip()),
        "repeat": {"program": program, "arguments": arguments()},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions(),
        "packages": packages(),
        "git_commit": git_commit(),
    }
    if policy is None:
        return described
    return {
        **described,
        "device": policy.device,
        "precision": policy.precision,
        "xla": policy.jit_compile,
    }


def arguments() -> list[str]:
    """Returns what was typed, and every other flag of the command at its default.

    So a later version, whose defaults may be others, repeats the same. Paths stand as they were
    typed, URLs without what is secret in them; defaults hold none of this machine.

    Example:
        >>> arguments()[-1:]  # of a process that is no command
        []
    """
    typed = [redaction.redacted(word) for word in sys.argv[1:]]
    if not flags.FLAGS.is_parsed():
        return typed
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    silent = [flag for flag in own if not flag.present and flag.value is not None]
    # Flags of paths have no serializer of their own.
    lines = [
        flag.serialize() if flag.serializer else f"--{flag.name}={flag.value}" for flag in silent
    ]
    return [*filter(None, lines), *typed]


def packages() -> dict[str, str]:
    """Returns the version of every installed package by its name, as `pip freeze` lists them.

    Names are normalised as in PEP 503; where a package comes from, such as a folder of this
    machine, is left out.
    """
    installed = {
        re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one.version
        # Of two copies on the path the first is imported.
        for one in reversed(list(importlib.metadata.distributions()))
        if one.metadata["Name"]
    }
    return dict(sorted(installed.items()))


def versions() -> dict[str, str]:
    """Returns the installed version of each package that results depend on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of the checkout this file lies in; "unknown" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
