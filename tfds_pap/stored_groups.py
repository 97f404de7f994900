"""The groups of prepared images, kept beside their pixels: other groups prepare no pixel again.

The records of a prepared data set hold the groups that its tree had then. Where `groups.csv` was
added, changed or removed since, the new groups lie in a small file in the same directory.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets.public_api as tfds

from tfds_pap import files
from tfds_pap.errors import PapError

_NAME = "groups.json"


def digest(groups: Mapping[str, str]) -> str:
    """Returns what identifies groups; "" where none is known.

    Args:
        groups: From id to group, "" where unknown.
    """
    named = sorted((image, group) for image, group in groups.items() if group)
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16] if named else ""


def renew(builder: tfds.core.DatasetBuilder, groups: Mapping[str, str]) -> None:
    """Takes the groups that a tree has now for those of its prepared images.

    Args:
        builder: A prepared builder.
        groups: From id to group, "" where unknown.
    """
    path = Path(builder.data_dir) / _NAME
    if digest(groups) == builder.info.metadata.get("groups"):
        path.unlink(missing_ok=True)
    elif not path.exists() or _stored(path) != groups:
        files.write_json(path, {"groups": dict(groups), "digest": digest(groups)})


def read(builder: tfds.core.DatasetBuilder) -> dict[str, str] | None:
    """Returns the groups that replace those in the records, or None where those hold.

    Args:
        builder: A prepared builder.

    Raises:
        PapError: If their file is damaged.
    """
    path = Path(builder.data_dir) / _NAME
    if not path.exists():
        return None
    groups = _stored(path)
    if groups is None:
        raise PapError(f"{path}: is damaged; give the folder of the images, and it is made again")
    return groups


def _stored(path: Path) -> dict[str, str] | None:
    """The groups of a file; None where it is damaged."""
    try:
        stored = files.read_json(path)
        groups = dict(stored["groups"])
    except (PapError, TypeError, KeyError, ValueError):
        return None
    return groups if stored.get("digest") == digest(groups) else None


def digest_now(builder: tfds.core.DatasetBuilder) -> str:
    """Returns the digest of the groups in force; "" where none is known.

    Args:
        builder: A prepared builder.
    """
    renewed = read(builder)
    return builder.info.metadata.get("groups", "") if renewed is None else digest(renewed)
