"""What a reader needs to judge or repeat a run: command, versions, commit, device."""

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from replication.runs.device import DevicePolicy

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-tuner",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
)


def describe(policy: DevicePolicy, program: str = "replication.run") -> dict[str, Any]:
    """Returns what a reader needs to judge or repeat a run: versions, commit, device.

    Args:
        policy: The device policy in force.
        program: The module that was run.
    """
    return {
        "command": " ".join([f"python -m {program}", *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions(),
        "git_commit": git_commit(),
        "device": policy.device,
        "precision": policy.precision,
        "xla": policy.jit_compile,
    }


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
