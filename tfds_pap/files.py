"""Files that are there whole or not at all, their locks, and their digests."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfds_pap.errors import PapError


@contextlib.contextmanager
def replacing(path: Path, ending: str = ".partial") -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends well.

    It lies beside `path`, is hidden, and has the names of this machine and process, so that two
    that write the same file do not write into one another; the last one stays.

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
    # Containers that share a file system often have the same process numbers.
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}{ending}")
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


def why_unwritable(path: Path, *, is_file: bool = False) -> str:
    """Returns why a place cannot be written, without making anything; "" where it can.

    Args:
        path: A folder, or a file; what is not there must be possible to make.
        is_file: Whether a file is meant.

    Example:
        >>> why_unwritable(Path("/proc/version/runs"))
        '/proc/version is no folder'
    """
    if path.exists():
        if path.is_dir() == is_file:
            return "is a folder, expected a file" if is_file else "is no folder"
        return "" if os.access(path, os.W_OK) else "cannot be written"
    above = path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return f"{above} is no folder"
    return "" if os.access(above, os.W_OK | os.X_OK) else f"{above} cannot be written"


#: Directories that this process holds, and the lock of each; they go with it.
_held: dict[str, int] = {}

_LOCK = ".lock"


def hold(directory: Path) -> None:
    """Keeps a directory to this process for as long as it lives; calling it again does no harm.

    The lock is one of POSIX: it goes with its process, however that ends, and not with children
    that outlive it.

    Args:
        directory: It is made where it is not there; halves of files that a killed process left in
            it, or below, are removed.

    Raises:
        PapError: Another process holds it; one line that names directory and process.
    """
    directory.mkdir(parents=True, exist_ok=True)
    where = os.path.realpath(directory)
    if where in _held:
        return
    # What is written into the lock must not go through a link into another file.
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            # Some network file systems have no locks.
            os.close(descriptor)
            return
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise PapError(
            f"{directory}: process {holder or 'of another user'} is at work there; wait until it "
            "ends, or give another directory"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _held[where] = descriptor
    _remove_abandoned(directory)


def _remove_abandoned(directory: Path) -> None:
    """Removes what killed processes of this machine were writing, see `replacing`."""
    pattern = re.compile(rf"\..+\.{re.escape(os.uname().nodename)}\.(\d+)\.[a-z0-9.]+")
    for path in directory.rglob(f".*.{os.uname().nodename}.*"):
        match = pattern.fullmatch(path.name)
        if match and _is_gone(int(match[1])):
            path.unlink(missing_ok=True)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def is_empty(directory: Path) -> bool:
    """Whether a directory holds nothing but the lock of a process."""
    return all(child.name == _LOCK for child in directory.iterdir())


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Digests of the files of a finished result, as `sha256sum --check` reads them.
SUMS = "SHA256SUMS"


def write_last(path: Path, value: Any, beside: Sequence[str]) -> None:
    """Writes the JSON file that says a result is finished, after the digests of all its files.

    Whoever reads one of them with `read_json` or `verify` is told of a changed byte.

    Args:
        path: The JSON file.
        value: What it holds.
        beside: The other files of the result: names in the same folder, or paths from there.
    """
    content = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    sums = {name: sha256(path.parent / name) for name in beside}
    sums[path.name] = hashlib.sha256(content).hexdigest()
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    write_atomically(path.with_name(SUMS), lines)
    write_atomically(path, content)


def verify(path: Path) -> None:
    """Checks a file of a finished result; does nothing where no digest of it was kept.

    Args:
        path: The file.

    Raises:
        PapError: If it is not what was written, or is gone.
    """
    kept = kept_sums(path.parent)
    if path.name not in kept:
        return
    if not path.exists():
        why = "is gone"
    elif sha256(path) != kept[path.name]:
        why = f"is damaged or was changed: its SHA-256 is not the one in {SUMS}"
    else:
        return
    raise PapError(
        f"{path}: {why}; delete {path.parent}, and the command that made it makes it again"
    )


def kept_sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 that each file of a finished result had; empty where none was kept."""
    sums = folder / SUMS
    if not sums.exists():
        return {}
    lines = (line.partition("  ") for line in sums.read_text("utf-8", "replace").splitlines())
    return {name: digest for digest, _, name in lines}


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        PapError: If the file is missing or is not JSON, or is not what `write_last` wrote.
    """
    verify(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PapError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise PapError(f"{path}: expected JSON ({error})") from None
