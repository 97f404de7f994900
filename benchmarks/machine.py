"""Names the machine, so that no figure stands without it."""

import datetime
import importlib.metadata
import os
import platform

from replication import runs


def describe() -> str:
    """Returns one line: processor, cores, Python, TensorFlow, Keras, date."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras")
    )
    return (
        f"{runs.processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"{versions}; {datetime.date.today()}"
    )
