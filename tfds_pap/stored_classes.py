"""What a lab declares of the classes of prepared images, kept beside their pixels."""

import hashlib
import json
from pathlib import Path

import tensorflow_datasets.public_api as tfds

from tfds_pap import files
from tfds_pap.classes import Classes

_NAME = "classes.json"


def renew(builder: tfds.core.DatasetBuilder, declared: Classes | None) -> None:
    """Takes what is declared now for what was.

    Args:
        builder: A prepared builder.
        declared: None where the names of the classes tell everything.
    """
    path = Path(builder.data_dir) / _NAME
    if declared is None:
        path.unlink(missing_ok=True)
    elif read(builder) != declared:
        files.write_json(path, declared.to_json())


def read(builder: tfds.core.DatasetBuilder) -> Classes | None:
    """Returns what is declared of the classes, or None.

    Args:
        builder: A prepared builder.
    """
    path = Path(builder.data_dir) / _NAME
    return Classes.from_json(files.read_json(path)) if path.exists() else None


def digest(builder: tfds.core.DatasetBuilder) -> str:
    """Returns what identifies the declaration; "" where there is none.

    Args:
        builder: A prepared builder.
    """
    declared = read(builder)
    if declared is None:
        return ""
    return hashlib.sha256(json.dumps(declared.to_json()).encode()).hexdigest()[:16]
