"""Which versions of a model lie on disk, and which of them a policy wants.

A version is a sub-directory whose name is a number, as TensorFlow Serving reads a base path.
"""

import os
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeAlias

#: A `FileSystemStoragePathSourceConfig.ServableVersionPolicy`, whose package has no types.
Policy: TypeAlias = Any

_NUMBER = re.compile(r"[0-9]+")
_LARGEST = 2**63 - 1


def on_disk(base_path: str | Path) -> dict[int, Path]:
    """The versions below a base path by number; leading zeros are read as TensorFlow Serving does.

    Raises:
        OSError: If the base path cannot be listed.

    Example:
        >>> import tempfile
        >>> base = Path(tempfile.mkdtemp())
        >>> for name in ("1", "0002", ".3.partial", "latest"):
        ...     (base / name).mkdir()
        >>> sorted((number, path.name) for number, path in on_disk(base).items())
        [(1, '1'), (2, '0002')]
    """
    numbered = {}
    # Sorted, so that of 01 and 1 always the same one is served: the shorter comes last.
    for path in sorted(Path(base_path).iterdir()):
        if _NUMBER.fullmatch(path.name) and int(path.name) <= _LARGEST and path.is_dir():
            numbered[int(path.name)] = path
    return numbered


def wanted(policy: Policy, on_disk: Set[int], broken: Set[int]) -> set[int]:
    """The versions that shall be served.

    Args:
        policy: `latest` (the newest `num_versions`, one unless given), `all` or `specific`.
        on_disk: Versions on disk.
        broken: Versions that failed to load and have not changed since; the next older one takes
            the place of one that is broken.
    """
    usable = sorted(on_disk - broken, reverse=True)
    choice = policy.WhichOneof("policy_choice") or "latest"
    if choice == "all":
        return set(usable)
    if choice == "specific":
        return set(usable) & set(policy.specific.versions)
    return set(usable[: max(1, policy.latest.num_versions)])


def unwanted(policy: Policy, on_disk: Set[int], wanted: Set[int], serving: Set[int]) -> set[int]:
    """The versions to unload, once every version in `wanted` serves.

    Where nothing can take over, what serves goes on serving, unless it was deleted on purpose: the
    version that a `specific` policy names, or the last one of all.
    """
    if wanted:
        return set(serving - wanted)
    if policy.WhichOneof("policy_choice") == "specific":
        return {v for v in serving if v not in on_disk and v in policy.specific.versions}
    return set() if on_disk else set(serving)


def files(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a version's files: another value where something was written."""
    seen = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            seen.append((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(seen))
