"""Files behind URLs such as s3://BUCKET/slide.svs: fsspec copies them to this machine.

Copies lie below the temporary directory (TMPDIR), by the URL and by what its storage says of the
file (ETag, generation, time), so that a file that changed is copied again. Several processes may
ask for one file: the first copies, the others wait. fsspec's own caches write a copy where others
already find it.

fsspec comes with Dask (extra `scale`), and is imported where a URL is given.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from tfds_pap import files, tables
from tfds_pap.errors import PapError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Share of the disk that copies leave free, where dropping older ones can.
_FREE = 0.1


class UrlError(PapError):
    """A URL that cannot be read; the message is one line that names it."""


def is_url(text: str) -> bool:
    """Tells a URL from a path.

    Example:
        >>> is_url("s3://bucket/slide.svs"), is_url("slides/a.svs")
        (True, False)
    """
    return _URL.match(text) is not None


def name(url: str) -> str:
    """Returns the name of a file without what is before it.

    Example:
        >>> name("s3://bucket/slides/a.svs")
        'a.svs'
    """
    return PurePosixPath(url).name


def check(url: str) -> None:
    """Refuses what fsspec cannot read; nothing is asked of the network.

    Args:
        url: The URL.

    Raises:
        UrlError: If fsspec or its package for the protocol is not installed, or it knows none.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise UrlError(f"{url}: needs fsspec: pip install 'pap-two-stage[scale]'")
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UrlError(f"{url}: no protocol of fsspec's (s3, gs, http, file ...)") from None
    except ImportError as error:
        raise UrlError(f"{url}: {str(error).rstrip('.')}, on every machine that reads") from None


def state(url: str) -> dict[str, int | str]:
    """Returns what tells a file from another one, as its storage says: "bytes" and "key".

    Args:
        url: The URL.

    Raises:
        UrlError: As `check`; if there is no such file, or its storage does not answer.
    """
    check(url)
    import fsspec

    try:
        storage, path = fsspec.url_to_fs(url)
        about = storage.info(path)
        if about["type"] != "file":
            raise UrlError(f"{url}: expected a file, not a folder")
        return {"bytes": int(about["size"] or 0), "key": str(storage.ukey(path))}
    except UrlError:
        raise
    except FileNotFoundError:
        raise UrlError(f"{url}: no such file") from None
    # Each storage has errors of its own, which have nothing in common.
    except Exception as error:
        raise UrlError(f"{url}: {_line(error)}") from None


def local(url: str) -> Path:
    """Copies a file to this machine, unless it lies there already.

    Args:
        url: The URL.

    Returns:
        The copy, of the same name. It stays until room is needed, the least recently used first.

    Raises:
        UrlError: As `state`, or if it cannot be copied.
    """
    found = state(url)
    import fsspec

    folder = _cache(url) / hashlib.sha256(f"{url}\n{found['key']}".encode()).hexdigest()[:32]
    copy = folder / name(url)
    try:
        folder.mkdir(exist_ok=True)
        with files.locked(folder):
            if not copy.exists():
                _make_room(folder, int(found["bytes"]))
                storage, path = fsspec.url_to_fs(url)
                with files.replacing(copy) as partial:
                    storage.get_file(path, str(partial))
            os.utime(folder)
    except Exception as error:
        raise UrlError(f"{url}: cannot be copied to {folder.parent} ({_line(error)})") from None
    return copy


def _cache(url: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"pap_urls_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UrlError(f"{url}: {folder} belongs to another user; set TMPDIR to another folder")
    return folder


def _make_room(folder: Path, size: int) -> None:
    """Drops what was not used for longest, while the disk would get too full."""
    others = [each for each in folder.parent.iterdir() if each != folder]
    for other in sorted(others, key=lambda each: each.stat().st_mtime):
        disk = shutil.disk_usage(folder)
        if disk.free - size >= _FREE * disk.total:
            return
        shutil.rmtree(other, ignore_errors=True)


def _line(error: Any) -> str:
    """An error in one line."""
    return " ".join((str(error) or type(error).__name__).split())


def listed(path: Path, column: str) -> list[str]:
    """Returns the paths and URLs of a table; paths lie beside it, or begin with `/`.

    Args:
        path: CSV with a row each.
        column: That names them.

    Raises:
        PapError: If it is no such table.
    """
    values = [row[column] for _, row in tables.read(path, (column,))]
    return [value if is_url(value) else str(path.parent / value) for value in values]
