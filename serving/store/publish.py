"""Puts a finished SavedModel where a server finds it: whole, or not at all.

A version is written to a hidden directory beside the others, checked there, and renamed to the next
integer. A rename on one file system happens or does not, so that a server that scans the directory
never sees half a version; it overwrites no version either, so that publishers need not know of one
another.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.store.versions import on_disk
from tfds_pap import files

_PREFIX = ".publishing-"


def publish(serving_dir: Path, write: Callable[[Path], None]) -> int:
    """Publishes a new version.

    Args:
        serving_dir: Holds the versions of one model; made where it is missing.
        write: Called with an empty directory, writes the version into it and checks it; whatever
            it raises leaves the other versions as they were.

    Returns:
        The new version's number: one above the highest there is.

    Raises:
        OSError: The directory cannot be written.
    """
    if not serving_dir.is_dir():
        serving_dir.mkdir(parents=True, exist_ok=True)
        serving_dir.chmod(0o755)
    sweep(serving_dir)
    with _hidden_directory(serving_dir) as hidden:
        write(hidden)
        _readable(hidden)
        _to_disk(hidden)
        version = _rename_to_next(hidden)
    _to_disk(serving_dir, recursive=False)
    return version


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns what TensorFlow raises where a file cannot be written into an OSError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.UnknownError) as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


def versions(serving_dir: Path) -> list[int]:
    """Returns the published versions, lowest first."""
    return sorted(on_disk(serving_dir)) if serving_dir.is_dir() else []


def sweep(serving_dir: Path) -> None:
    """Removes what publishers that were killed have left behind.

    A publisher at work holds a lock on its directory, which goes with its process.
    """
    for path in serving_dir.glob(f"{_PREFIX}*"):
        gone_or_at_work = contextlib.suppress(FileNotFoundError, BlockingIOError)
        with gone_or_at_work, files.locked(path, wait=False):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _hidden_directory(serving_dir: Path) -> Iterator[Path]:
    """A locked directory on the same file system; it is removed unless it was renamed."""
    with contextlib.ExitStack() as lock:
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=serving_dir))
            # Another publisher may sweep it before it is opened, or before it is locked.
            with contextlib.suppress(FileNotFoundError):
                lock.enter_context(files.locked(path))
            if path.exists():
                break
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _rename_to_next(hidden: Path) -> int:
    serving_dir = hidden.parent
    while True:
        version = max(versions(serving_dir), default=0) + 1
        try:
            hidden.rename(serving_dir / str(version))
        except OSError:
            # Renaming onto a directory that is not empty fails: another publisher was faster.
            if version not in versions(serving_dir):
                raise
        else:
            return version


def _readable(folder: Path) -> None:
    """Lets everybody read, whatever the umask: a server in a container is another user."""
    folder.chmod(0o755)
    for each in folder.rglob("*"):
        each.chmod(0o755 if each.is_dir() else 0o644)


def _to_disk(path: Path, *, recursive: bool = True) -> None:
    """Makes files and names survive a loss of power."""
    for each in [path, *(path.rglob("*") if recursive else ())]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
