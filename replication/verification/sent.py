"""Directories that somebody else may have sent: what is read of them ends, and ends in one line."""

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from replication.runs.directory import RunDirectory
from tfds_pap.errors import PapError

#: Bytes of a file that is read as a whole, by its ending.
_MOST = {".json": 2**28, ".csv": 2**31}


def check(path: Path) -> None:
    """Looks at the kind and the size of all that is in a directory, before any of it is read.

    Args:
        path: The directory.

    Raises:
        PapError: Something is neither a file nor a folder, such as a pipe, which never ends; or a
            table is too large to be one of this package's.
    """
    for each in path.rglob("*"):
        try:
            about = each.stat()
        except FileNotFoundError:
            # A link that leads nowhere; whoever reads it says so.
            continue
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise PapError(f"{each}: neither a file nor a folder; nothing was read")
        if about.st_size > (most := _MOST.get(each.suffix, about.st_size)):
            raise PapError(
                f"{each}: {about.st_size:,} bytes, expected at most {most:,}; nothing was read"
            )


@contextlib.contextmanager
def one_error(run: RunDirectory) -> Iterator[None]:
    """Turns whatever reading a changed directory raises into one line.

    Args:
        run: That is read in the block.

    Raises:
        PapError: It is not what a command writes.
    """
    try:
        yield
    except (PapError, OSError):
        raise
    # Each value of each file may be missing, of another type or nested without end, and each
    # reader says so by another error.
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PapError(f"{run.path}: not what a command writes there ({why})") from error
