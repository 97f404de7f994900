"""Files that are there whole or not at all, their locks, and their digests."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfds_pap.errors import PapError


@contextlib.contextmanager
def replacing(path: Path, ending: str = ".partial") -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends well.

    It lies beside `path`, is hidden, and has this process's number, so that two that write
    the same file do not write into one another; the last one stays.

    Args:
        path: What is written; its directory is made.
        ending: Of the path that is given, for a writer that insists on one.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "figures.csv"
        >>> with replacing(path) as partial:
        ...     _ = partial.write_text("accuracy,0.9")
        >>> path.read_text()
        'accuracy,0.9'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all.

    Raises:
        ValueError: If a number of it is not finite.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file or a directory; it goes with its process, however that ends.

    Args:
        path: What is there already; it is neither read nor written.
        wait: Whether to wait while another process holds the lock.

    Raises:
        FileNotFoundError: If there is nothing.
        BlockingIOError: If another process holds the lock, and `wait` is False.
    """
    # NFS locks for one process alone only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        PapError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise PapError(f"{path}: no such file") from None
    except ValueError as error:
        raise PapError(f"{path}: expected JSON ({error})") from None
