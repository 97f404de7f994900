"""Files and folders behind URLs such as s3://BUCKET/slide.svs: fsspec finds and reads them.

fsspec comes with Dask (extra `scale`), and is imported where a URL is given.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib import parse

from tfds_pap import redaction, tables, tree_files
from tfds_pap.errors import PapError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Files and folders that a listing may have, and folders in one another: links may lead in circles.
_MOST_LISTED, _DEEPEST = 10_000_000, 64

#: Of a web server: seconds until it says something, and those for a file beside its bytes.
_SILENCE, _PATIENCE = 60, 300

#: Bytes a second that a web server gives at least.
_SLOWEST = 2**15


#: Why no URL is asked at present; "" where they are.
_unasked = contextvars.ContextVar("_unasked", default="")


class UrlError(PapError):
    """A URL that cannot be read; the message is one line that names it, and no secret in it."""

    def __init__(self, message: str) -> None:
        super().__init__(redaction.redacted(message))


class MissingError(UrlError):
    """There is no such file or folder."""


def is_url(text: str) -> bool:
    """Tells a URL from a path.

    Example:
        >>> is_url("s3://bucket/slide.svs"), is_url("slides/a.svs")
        (True, False)
    """
    return _URL.match(text) is not None


def name(url: str) -> str:
    """Returns the name of a file without what is before it, and the parameters after it.

    Example:
        >>> name("s3://bucket/slides/a.svs"), name("https://host/a%20b.svs?token=1")
        ('a.svs', 'a b.svs')
    """
    if is_web(url):
        url = parse.unquote(re.split("[?#]", url)[0])
    elif is_url(url):
        # A key of a bucket may hold a question mark.
        url = re.sub(r"\?[\w.-]+=.*", "", url, flags=re.DOTALL)
    return PurePosixPath(url).name


def is_web(url: str) -> bool:
    """Tells whether a URL is one of a web server, which lists no folders."""
    return url.lower().startswith(("http://", "https://"))


def check(url: str) -> None:
    """Refuses what fsspec cannot read; nothing is asked of the network.

    Args:
        url: The URL.

    Raises:
        UrlError: If fsspec or its package for the protocol is not installed, or it knows none; if
            the URL holds a password, which tables and manifests would keep, or names no file.
    """
    if redaction.holds_password(url):
        raise UrlError(
            f"{url}: a password in a URL is not taken; give it in fsspec's configuration "
            "(~/.config/fsspec) or the storage's own"
        )
    if "::" in url:
        raise UrlError(f"{url}: expected one file system, not several in one another (::)")
    if name(url.rstrip("/")) in ("", ".", ".."):
        raise UrlError(f"{url}: expected a URL that ends in a name")
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
        about = storage.info(path, **timeout(storage))
        if about["type"] != "file":
            raise UrlError(f"{url}: expected a file, not a folder")
        return {"bytes": int(about["size"] or 0), "key": _key(storage, path, about)}


def _key(storage: Any, path: str, about: dict[str, Any]) -> str:
    """What tells a version of a file from another one."""
    if "http" not in storage.protocol:
        return str(storage.ukey(path))
    # fsspec takes files of the web for unchanging, and their URL, signature and all, for their key.
    told = [about.get(name) for name in ("size", "ETag", "Content-MD5", "Digest", "Last-Modified")]
    return hashlib.sha256(repr(told).encode()).hexdigest()


@contextlib.contextmanager
def unasked(why: str) -> Iterator[None]:
    """Has every URL refused in a block, in this thread; nothing is asked of the network.

    Args:
        why: Is part of the errors; "" asks as ever.

    Example:
        >>> with unasked("somebody else names it"):
        ...     read("s3://bucket/a.csv", 10)
        Traceback (most recent call last):
        tfds_pap.urls.UrlError: s3://bucket/a.csv: not asked (somebody else names it)
    """
    before = _unasked.set(why)
    try:
        yield
    finally:
        _unasked.reset(before)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Gives the storage of a URL and the path in it; what goes wrong in the block is one line.

    Raises:
        UrlError: As `check`; if there is no such file, or its storage does not answer.
    """
    if why := _unasked.get():
        raise UrlError(f"{url}: not asked ({why})")
    check(url)
    try:
        yield storage_of(url)
    except UrlError as error:
        raise (
            error if redaction.redacted(url) in str(error) else UrlError(f"{url}: {error}")
        ) from None
    except FileNotFoundError:
        raise MissingError(f"{url}: no such file or folder") from None
    # Each storage has errors of its own, which have nothing in common.
    except Exception as error:
        raise UrlError(f"{url}: {line(error)}") from None


def read(url: str, most: int) -> bytes:
    """Returns what a file holds; no copy of it is kept.

    Args:
        url: The URL.
        most: Bytes; of a larger file no more is read.

    Raises:
        UrlError: As `state`, or if it is larger.
    """
    with _opened(url) as (storage, path), tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "copy"
        fetch(storage, path, place, most, timeout(storage))
        return place.read_bytes()


def storage_of(url: str) -> tuple[Any, str]:
    """Returns the storage of a URL and the path in it.

    aiohttp's own end comes after five minutes, in the middle of a large slide; here that of a web
    server which is silent, and with `timeout` that of one which is slow.
    """
    import fsspec

    protocol, options = url.partition("://")[0], {}
    if protocol in ("http", "https"):
        import aiohttp  # type: ignore[import-not-found, unused-ignore]

        silence = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        configured = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": silence, **configured}
    storage, path = fsspec.url_to_fs(url, **options)
    # A process outlives what it was told of a bucket.
    storage.invalidate_cache()
    return storage, path


def timeout(storage: Any, size: int = 0) -> dict[str, float]:
    """Returns the option that ends what takes a web server too long, in seconds.

    Args:
        storage: From `storage_of`.
        size: Bytes that are read.
    """
    return {"timeout": _PATIENCE + size / _SLOWEST} if "http" in storage.protocol else {}


def fetch(storage: Any, path: str, place: Path, most: int, options: dict[str, float]) -> None:
    """Copies a file of at most so many bytes; a web server may send more than it told, or no end.

    Args:
        storage: From `storage_of`, with `path`.
        path: Of the file in it.
        place: That is written.
        most: Bytes.
        options: From `timeout`.

    Raises:
        UrlError: It is larger.
    """
    import fsspec

    class Bounded(fsspec.Callback):
        """Told before and while bytes come."""

        def set_size(self, size: int | None) -> None:
            _check_most(size or 0, most)

        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            _check_most(self.value, most)

    # Of this machine's own files nothing is told while they are copied.
    if "file" in storage.protocol:
        _check_most(storage.size(path), most)
    storage.get_file(path, str(place), callback=Bounded(), **options)


def _check_most(size: int, most: int) -> None:
    if size > most:
        raise UrlError(f"more than the {most:,} bytes expected")


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
        if storage.info(path, **timeout(storage))["type"] == "file":
            about = state(url)
            return [Below(url, "", int(about["bytes"]), str(about["key"]))]
        listed = sorted(_listed_below(storage, path), key=lambda each: each[0])
    return [
        Below(
            f"{url.rstrip('/')}/{'/'.join(parts)}",
            "/".join(parts),
            int(about["size"] or 0),
            hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest(),
        )
        for parts, about in listed
    ]


def _listed_below(storage: Any, root: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yields what fsspec tells of each file below a folder, and the names on its way.

    fsspec's own walk takes a folder that it may not read for an empty one, and has no end.

    Raises:
        UrlError: There is no end, or a name is no path of a file system.
    """
    folders: list[tuple[list[str], str]] = [([], root)]
    count = 0
    while folders:
        above, folder = folders.pop()
        if len(above) > _DEEPEST:
            raise UrlError(f"more than {_DEEPEST} folders in one another at {'/'.join(above)!r}")
        for about in storage.ls(folder, detail=True):
            if (count := count + 1) > _MOST_LISTED:
                raise UrlError(f"more than the {_MOST_LISTED:,} files expected in a folder")
            if about.get("islink"):
                if _leads_up(about["name"]):
                    continue
                # What it leads to; of a link that leads nowhere an error.
                about = {**storage.info(about["name"]), "name": about["name"]}
            name = about["name"][len(folder.rstrip("/")) + 1 :]
            if about["type"] == "file" and name == "":
                # Stores of objects have files that stand for their folders.
                continue
            # Keys of a bucket may be anything; what they name is made below a folder.
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise UrlError(f"{about['name']!r} is no path of a file")
            if tree_files.is_hidden(Path(name)):
                continue
            if about["type"] == "directory":
                folders.append(([*above, name], about["name"]))
            elif about["type"] == "file":
                yield [*above, name], about


def _leads_up(link: str) -> bool:
    """Whether a link of this machine leads to a folder above it, and would be followed for ever."""
    where = os.path.realpath(link)
    return where in tree_files.real_parents(Path(link).parent)


def beside(url: str, name: str) -> str | None:
    """Returns the URL of a file in the same folder; None where there is none.

    A web server is not asked: it answers whatever it likes. Storage that hides what one may not
    read is taken at its word.

    Args:
        url: Of a file.
        name: Of the other one.

    Raises:
        UrlError: If the storage does not answer.
    """
    if is_web(url):
        return None
    where = f"{url.rpartition('/')[0]}/{name}"
    with _opened(where) as (storage, path):
        try:
            return where if storage.info(path)["type"] == "file" else None
        except (FileNotFoundError, PermissionError):
            return None


def inside(value: str, name: str) -> str:
    """Returns the path or URL of what lies in a folder.

    Example:
        >>> inside("s3://bucket/", "DB_4"), inside("data", "DB_4"), inside("data", "")
        ('s3://bucket/DB_4', 'data/DB_4', 'data')
    """
    if not is_url(value):
        return str(Path(value) / name)
    return f"{value.rstrip('/')}/{name}" if name else value


def is_folder(value: str) -> bool:
    """Tells whether a path or URL is that of a folder.

    Raises:
        UrlError: If the storage does not answer.
    """
    if not is_url(value):
        return Path(value).expanduser().is_dir()
    with _opened(value) as (storage, path):
        # The storages' own answer to this takes an error for a no.
        try:
            return bool(storage.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False


def line(error: Any) -> str:
    """Returns an error of a storage, or its words, in one line."""
    if isinstance(error, TimeoutError):
        return "does not answer in time"
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
