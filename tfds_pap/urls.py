"""Files and folders behind URLs such as s3://BUCKET/slide.svs: fsspec finds, reads and copies them.

Copies lie below the temporary directory (TMPDIR), by the URL and by what its storage says of the
file (ETag, generation, time), so that a file that changed is copied again. Several processes may
ask for one file or folder: the first copies, the others wait. fsspec's own caches write a copy
where others already find it.

fsspec comes with Dask (extra `scale`), and is imported where a URL is given.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path, PurePosixPath
from typing import Any

import tqdm

from tfds_pap import files, tables, tree_files
from tfds_pap.errors import PapError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Share of the disk that copies leave free, where dropping older ones can.
_FREE = 0.1

#: Files of a folder that are copied at a time: storage far away answers late, and many at once.
_AT_ONCE = 8


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
    with _opened(url) as (storage, path):
        about = storage.info(path)
        if about["type"] != "file":
            raise UrlError(f"{url}: expected a file, not a folder")
        return {"bytes": int(about["size"] or 0), "key": str(storage.ukey(path))}


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Gives the storage of a URL and the path in it; what goes wrong in the block is one line.

    Raises:
        UrlError: As `check`; if there is no such file, or its storage does not answer.
    """
    check(url)
    import fsspec

    try:
        yield fsspec.url_to_fs(url)
    except UrlError:
        raise
    except FileNotFoundError:
        raise UrlError(f"{url}: no such file or folder") from None
    # Each storage has errors of its own, which have nothing in common.
    except Exception as error:
        raise UrlError(f"{url}: {_line(error)}") from None


def read(url: str) -> bytes:
    """Returns what a file holds; no copy of it is kept.

    Args:
        url: The URL.

    Raises:
        UrlError: As `state`.
    """
    with _opened(url) as (storage, path):
        return storage.cat_file(path)


@dataclasses.dataclass(frozen=True)
class Below:
    """A file behind a URL, or one below the folder there.

    Attributes:
        url: Of the file.
        relative: Its path below the folder, with forward slashes; "" of the file itself.
        bytes: Its size.
        key: What tells it from another one, as its storage says.
    """

    url: str
    relative: str
    bytes: int
    key: str


def below(url: str) -> list[Below]:
    """Lists what a URL names: the file itself, or all files below a folder, as `tree_files` walks.

    Args:
        url: Of a file or folder.

    Returns:
        Sorted by path, folder by folder; without hidden files, and what is in hidden folders.

    Raises:
        UrlError: As `state`, or if a name is no path of a file system.

    Example:
        >>> [file.relative for file in below("s3://bucket/cells")]  # doctest: +SKIP
        ['NILM/a.png', 'SCC/b.png']
    """
    with _opened(url) as (storage, path):
        if storage.info(path)["type"] == "file":
            about = state(url)
            return [Below(url, "", int(about["bytes"]), str(about["key"]))]
        listed = []
        for name, about in storage.find(path, detail=True).items():
            parts = name.removeprefix(path).lstrip("/").split("/")
            if about["type"] != "file" or any(map(tree_files.is_hidden, map(Path, parts))):
                continue
            # Keys of a bucket may be anything; what they name is made below a folder.
            if not all(parts):
                raise UrlError(f"{url}: {name!r} is no path of a file")
            listed.append((parts, about))
    return [
        Below(
            f"{url.rstrip('/')}/{'/'.join(parts)}",
            "/".join(parts),
            int(about["size"] or 0),
            hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest(),
        )
        for parts, about in sorted(listed, key=lambda each: each[0])
    ]


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
    with _kept(url, f"{url}\n{found['key']}", int(found["bytes"])) as folder:
        copy = folder / name(url)
        if not copy.exists():
            _copy(url, copy)
    return copy


def local_folder(url: str) -> Path:
    """Copies a folder to this machine, unless it lies there as its storage has it now.

    A command that was killed goes on with the files that are missing.

    Args:
        url: Of the folder.

    Returns:
        The copy, of the same name, without hidden files. It stays as that of `local` does.

    Raises:
        UrlError: As `below`; if it is a file or holds none, or cannot be copied.
    """
    found = below(url)
    if not found or not found[0].relative:
        raise UrlError(f"{url}: expected a folder with files")
    told = "\n".join([url, *(f"{file.relative} {file.key}" for file in found)])
    with _kept(url, told, sum(file.bytes for file in found)) as folder:
        copy = folder / name(url.rstrip("/"))
        places = {file.url: copy / file.relative for file in found}
        missing = {each: place for each, place in places.items() if not place.exists()}
        with (
            futures.ThreadPoolExecutor(_AT_ONCE) as pool,
            tqdm.tqdm(
                desc=f"Copying {url}", total=len(missing), unit="file", disable=not missing
            ) as bar,
        ):
            for _ in pool.map(_copy, missing.keys(), missing.values()):
                bar.update()
    return copy


def folder(value: str) -> Path:
    """Returns a folder of this machine: that of a path, or the copy of what is behind a URL.

    Args:
        value: Path, with `~` for the home directory, or URL.

    Raises:
        UrlError: As `local_folder`.
    """
    return local_folder(value) if is_url(value) else Path(value).expanduser()


@contextlib.contextmanager
def _kept(url: str, told: str, size: int) -> Iterator[Path]:
    """Gives the folder of a copy to one process at a time, with room in it.

    Args:
        url: Of what is copied.
        told: What tells it from anything else.
        size: Bytes.
    """
    folder = _cache(url) / hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    try:
        folder.mkdir(exist_ok=True)
        with files.locked(folder):
            if files.is_empty(folder):
                _make_room(folder, size)
            yield folder
            os.utime(folder)
    except Exception as error:
        raise UrlError(f"{url}: cannot be copied to {folder.parent} ({_line(error)})") from None


def _copy(url: str, place: Path) -> None:
    import fsspec

    storage, path = fsspec.url_to_fs(url)
    with files.replacing(place) as partial:
        storage.get_file(path, str(partial))


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
