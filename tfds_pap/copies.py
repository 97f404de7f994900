"""Copies of what lies behind URLs, on the machine that reads.

They lie below the temporary directory (TMPDIR), by the URL and by what its storage says of the
file (ETag, generation, time), so that a file that changed is copied again. Several processes may
ask for one file or folder: the first copies, the others wait. fsspec's own caches write a copy
where others already find it.
"""

import collections
import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import tqdm

from tfds_pap import files, redaction, urls

#: Share of the disk that copies leave free, where dropping older ones can.
_FREE = 0.1

#: Copies that a process asked for last, which nobody drops: it may be reading them.
_READ_AT_ONCE = 8

#: What this process keeps from being dropped, by the lock file of each.
_in_use: collections.OrderedDict[Path, int] = collections.OrderedDict()
_in_use_guard = threading.Lock()

#: Files of a folder that are copied at a time: storage far away answers late, and many at once.
_AT_ONCE = 8


def local(url: str) -> Path:
    """Copies a file to this machine, unless it lies there already.

    Args:
        url: The URL.

    Returns:
        The copy, of the same name. It stays until room is needed, the least recently used first,
        and as long as it is among the last eight that this process asked for.

    Raises:
        urls.UrlError: As `urls.state`, or if it cannot be copied.
    """
    found = urls.state(url)
    with _kept(url, f"{redaction.redacted(url)}\n{found['key']}", int(found["bytes"])) as folder:
        copy = folder / urls.name(url)
        if not copy.exists():
            _copy(url, copy, int(found["bytes"]))
    return copy


def local_folder(url: str) -> Path:
    """Copies a folder to this machine, unless it lies there as its storage has it now.

    A command that was killed goes on with the files that are missing.

    Args:
        url: Of the folder.

    Returns:
        The copy, of the same name, without hidden files. It stays as that of `local` does.

    Raises:
        urls.UrlError: As `urls.below`; if it is a file or holds none, or cannot be copied.
    """
    found = urls.below(url)
    if not found or not found[0].relative:
        also = "; web servers list none" if urls.is_web(url) else ""
        raise urls.UrlError(f"{url}: expected a folder with files{also}")
    told = "\n".join([url, *(f"{file.relative} {file.key}" for file in found)])
    with _kept(url, told, sum(file.bytes for file in found)) as folder:
        copy = folder / urls.name(url.rstrip("/"))
        places = [(file.url, copy / file.relative, file.bytes) for file in found]
        missing = [each for each in places if not each[1].exists()]
        with (
            futures.ThreadPoolExecutor(_AT_ONCE) as pool,
            tqdm.tqdm(
                desc=f"Copying {redaction.redacted(url)}",
                total=len(missing),
                unit="file",
                disable=not missing,
            ) as bar,
        ):
            for _ in pool.map(lambda each: _copy(*each), missing):
                bar.update()
    # Errors name files by where they lie here.
    print(f"{copy.name}: a copy of {redaction.redacted(url)} in {copy.parent}", flush=True)
    return copy


def folder(value: str | os.PathLike, below: str = "") -> Path:
    """Returns a folder of this machine: that of a path, or the copy of what is behind a URL.

    Args:
        value: Path, with `~` for the home directory, or URL.
        below: Name of a folder in it that is meant; of a URL nothing else is copied.

    Raises:
        urls.UrlError: As `local_folder`.
    """
    text = os.fspath(value)
    if urls.is_url(text):
        return local_folder(urls.inside(text, below))
    return Path(text).expanduser() / below


def file(value: str | os.PathLike) -> Path:
    """Returns a file of this machine: that of a path, or the copy of what is behind a URL.

    Raises:
        urls.UrlError: As `local`.
    """
    text = os.fspath(value)
    return local(text) if urls.is_url(text) else Path(text)


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
        with _alone(folder):
            # Of a command that was killed; who holds the lock is alone here.
            for partial in folder.rglob(".*.partial"):
                partial.unlink()
            if files.is_empty(folder):
                _make_room(folder, size)
            yield folder
            os.utime(folder)
            _keep(folder)
    except Exception as error:
        raise urls.UrlError(
            f"{url}: cannot be copied to {folder.parent} ({urls.line(error)})"
        ) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder and holds its lock."""
    with contextlib.ExitStack() as held:
        while True:
            folder.mkdir(exist_ok=True)
            try:
                held.enter_context(files.locked(folder))
            except FileNotFoundError:
                continue
            # Whoever held the lock before may have dropped what it is of.
            if folder.is_dir():
                break
            held.close()
        yield


def _used_by(folder: Path) -> Path:
    """Returns the file whose shared lock says that somebody may be reading a copy."""
    return folder.with_suffix(".used")


def _keep(folder: Path) -> None:
    """Keeps a copy from being dropped, whose lock the caller holds, and lets go of an older one."""
    place = _used_by(folder)
    with _in_use_guard:
        if place not in _in_use:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _in_use[place] = descriptor
        _in_use.move_to_end(place)
        while len(_in_use) > _READ_AT_ONCE:
            os.close(_in_use.popitem(last=False)[1])


def _copy(url: str, place: Path, size: int) -> None:
    """Copies a file of so many bytes; 0 where its storage does not tell."""
    storage, path = urls.storage_of(url)
    most = size or shutil.disk_usage(tempfile.gettempdir()).free
    with files.replacing(place) as partial:
        urls.fetch(storage, path, partial, most, urls.timeout(storage, size))
        if size and (got := partial.stat().st_size) != size:
            raise urls.UrlError(
                f"{place.name}: {got:,} bytes came of {size:,}; did it change meanwhile?"
            )


def _cache(url: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"pap_urls_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    # What is in it may be dropped: through a link that would be anything.
    if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode):
        raise urls.UrlError(
            f"{url}: {folder} is a link or belongs to another user; set TMPDIR to another folder"
        )
    return folder


def _make_room(folder: Path, size: int) -> None:
    """Drops what was not used for longest, while the disk would get too full."""
    if size > (total := shutil.disk_usage(folder).total):
        raise urls.UrlError(f"{size:,} bytes, the disk has {total:,}")
    others = [each for each in folder.parent.iterdir() if each.is_dir() and each != folder]
    for other in sorted(others, key=lambda each: each.stat().st_mtime):
        disk = shutil.disk_usage(folder)
        if disk.free - size >= _FREE * disk.total:
            return
        # One that is being copied, or may be read, stays; another process may have dropped it.
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            files.locked(other, wait=False),
        ):
            (used := _used_by(other)).touch()
            with files.locked(used, wait=False):
                used.unlink()
                shutil.rmtree(other, ignore_errors=True)
