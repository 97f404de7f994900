"""Reads an authors' image tree strictly: sorted, every file decoded once, every offender named.

A tree is ``<root>/<split>/<class folder>/**/<image>`` with an optional ``<root>/groups.csv``
(``file,group``; the slide, field or patient each image was cut from).
"""

import collections
import dataclasses
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path

from etils import epath

from tfds_pap import file_tables, images, layouts, tree_files, urls
from tfds_pap.layouts import ListedFile, suspicions
from tfds_pap.tree_files import TreeError

_SHOWN_OFFENDERS = 20


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree that was read without an offender.

    Attributes:
        root: The tree's folder.
        files: Every image, sorted by id.
        fingerprint: sha256 over the sorted relative paths and contents of the images; groups are
            no part of it, see `stored_groups`.
        notes: What a reader should know but need not act on.
    """

    root: epath.Path
    files: tuple[ListedFile, ...]
    fingerprint: str
    notes: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns images per split and class."""
        counts: dict[str, dict[str, int]] = {}
        for file in self.files:
            split = counts.setdefault(file.split, {})
            split[file.label] = split.get(file.label, 0) + 1
        return counts


def read_tree(
    root: epath.PathLike,
    class_folders: Mapping[str, str],
    splits: Iterable[str] = ("train", "validation"),
    published: Mapping[str, Mapping[str, int]] | None = None,
) -> Tree:
    """Reads and checks an image tree; decodes every file once.

    Args:
        root: For example ``manual_dir/DB_4``.
        class_folders: Folder name -> class name, for example `taxonomy.DB4_FOLDERS`.
        splits: Folders between the root and the class folders; empty where there are none.
        published: Images per split and class as published; other counts give a note.

    Returns:
        The tree, its files sorted by id.

    Raises:
        TreeError: If the tree is missing or anything in it cannot be used. One message lists
            the first 20 offenders, a count of the rest, and what was expected.

    Example:
        >>> tree = read_tree("data/DB_4", taxonomy.DB4_FOLDERS)  # doctest: +SKIP
        >>> tree.counts()["validation"]["SCC"]  # doctest: +SKIP
        200
    """
    root = epath.Path(root)
    splits = tuple(splits)
    expected = _expected(root, class_folders, splits)
    if not root.is_dir():
        raise TreeError(f"{root}: no such folder; {expected}")
    listed, offenders = _list_images(root, class_folders, splits)
    groups, group_offenders = _read_groups(root, listed)
    offenders += group_offenders
    files = tuple(dataclasses.replace(file, group=groups.get(file.id, "")) for file in listed)
    digests = _checked(root, files, offenders, expected)
    tree = Tree(root, files, _fingerprint(files, digests), ())
    notes = list(_notes(tree, digests, published))
    if not splits:
        # A lab's tree; `layouts.read` says the same of a listing.
        suspects = suspicions.of((file.id, file.label) for file in files)
        notes += [f"{root.name}: {line}" for line in suspects]
    return dataclasses.replace(tree, notes=tuple(notes))


def check_listing(listing: layouts.Listing) -> Tree:
    """Checks a lab's own images; decodes every file once.

    Args:
        listing: From `layouts.read`.

    Raises:
        TreeError: If anything that is listed cannot be used. One message lists the first 20
            offenders and a count of the rest; nothing is left out of a set in silence.
    """
    root = epath.Path(listing.root)
    expected = "expected images that decode; --ignore=PATTERN passes files over"
    digests = _checked(root, listing.files, list(listing.offenders), expected)
    tree = Tree(root, listing.files, _listing_fingerprint(listing.files, digests), ())
    return dataclasses.replace(tree, notes=tuple(_notes(tree, digests, None)))


def listing_fingerprint(listing: layouts.Listing) -> str:
    """Returns the fingerprint that `check_listing` would, without decoding.

    Args:
        listing: From `layouts.read`.

    Raises:
        TreeError: If the listing names what cannot be used.
    """
    if listing.offenders:
        expected = "expected images; --ignore=PATTERN passes files over"
        raise TreeError(_complaint(epath.Path(listing.root), list(listing.offenders), expected))
    return _listing_fingerprint(listing.files, _digests(listing.files))


def _checked(
    root: epath.Path, files: tuple[ListedFile, ...], offenders: list[str], expected: str
) -> list[bytes]:
    """Returns the digest of each file; raises `TreeError` with all that cannot be used."""
    # Windows of one picture lie in one file.
    paths = list(dict.fromkeys(file.path for file in files))
    with futures.ThreadPoolExecutor() as pool:
        checked = dict(zip(paths, pool.map(_check_file, paths), strict=True))
    offenders += [f"{file.id}: {why}" for file in files if (why := checked[file.path][1])]
    digests = [_of_window(checked[file.path][0], file) for file in files]
    offenders += _contradictions(files, digests)
    if offenders:
        raise TreeError(_complaint(root, offenders, expected))
    return digests


def _digests(files: Iterable[ListedFile]) -> list[bytes]:
    files = list(files)
    paths = list(dict.fromkeys(file.path for file in files))
    with futures.ThreadPoolExecutor() as pool:
        digests = dict(
            zip(paths, pool.map(lambda path: _sha256(path.read_bytes()), paths), strict=True)
        )
    return [_of_window(digests[file.path], file) for file in files]


def _of_window(digest: bytes, file: ListedFile) -> bytes:
    return digest if file.crop is None else _sha256(digest + repr(file.crop).encode())


def fingerprint(
    root: epath.PathLike,
    class_folders: Mapping[str, str],
    splits: Iterable[str] = ("train", "validation"),
) -> str:
    """Returns the fingerprint that `read_tree` would, without decoding.

    Args:
        root: The tree's folder.
        class_folders: Folder name -> class name.
        splits: Folders between the root and the class folders; empty where there are none.

    Raises:
        TreeError: If the folder is missing.
    """
    root = epath.Path(root)
    if not root.is_dir():
        raise TreeError(f"{root}: no such folder; {_expected(root, class_folders, tuple(splits))}")
    files, _ = _list_images(root, class_folders, tuple(splits))
    return _fingerprint(files, _digests(files))


def read_groups(
    root: epath.PathLike,
    class_folders: Mapping[str, str],
    splits: Iterable[str] = ("train", "validation"),
) -> dict[str, str]:
    """Returns the group of every image as `read_tree` would, without reading an image.

    Args:
        root: The tree's folder.
        class_folders: Folder name -> class name.
        splits: Folders between the root and the class folders; empty where there are none.

    Returns:
        From id to group, "" where the tree names none.

    Raises:
        TreeError: If `groups.csv` cannot be used.
    """
    root, splits = epath.Path(root), tuple(splits)
    files, _ = _list_images(root, class_folders, splits)
    groups, offenders = _read_groups(root, files)
    if offenders:
        raise TreeError(_complaint(root, offenders, _expected(root, class_folders, splits)))
    return {file.id: groups.get(file.id, "") for file in files}


def groups_of(root: epath.PathLike, ids: Collection[str]) -> dict[str, str]:
    """Returns the groups that `groups.csv` of a folder names.

    Args:
        root: The folder.
        ids: Paths of its images below it, with forward slashes.

    Returns:
        From path to group; empty where there is no table.

    Raises:
        TreeError: If the table cannot be used.
    """
    groups, offenders = file_tables.read(Path(root) / "groups.csv", "group", set(ids))
    if offenders:
        raise TreeError(_complaint(epath.Path(root), offenders, "expected groups.csv (file,group)"))
    return groups


def image_paths(
    folder: epath.PathLike, endings: Collection[str] = images.FORMATS.keys()
) -> list[epath.Path]:
    """Returns every image below a folder, sorted; other files are passed over.

    Args:
        folder: Hidden files and what archivers leave behind are no part of it.
        endings: Of the images, in lower case with their dot.
    """
    return [path for path in tree_files.walk(epath.Path(folder)) if path.suffix.lower() in endings]


def expand_images(arguments: Iterable[str]) -> list[str]:
    """Returns the images that arguments name: files as they are, of folders all below them.

    Args:
        arguments: Files and folders, and URLs of these.

    Raises:
        TreeError: One does not exist, or is a folder without images.
        urls.UrlError: As `urls.below`.
    """
    return [path for path, _ in images_and_states(arguments)]


def images_and_states(arguments: Iterable[str]) -> list[tuple[str, str]]:
    """Returns what `expand_images` does, and of each image what tells it from another file."""
    found: list[tuple[str, str]] = []
    for argument in arguments:
        below = _images_behind(argument) if urls.is_url(argument) else _images_at(argument)
        if not below:
            raise TreeError(f"{argument}: holds no image")
        found += below
    return found


def _images_behind(url: str) -> list[tuple[str, str]]:
    return [
        (file.url, file.key)
        for file in urls.below(url)
        if not file.relative or Path(file.relative).suffix.lower() in images.FORMATS
    ]


def _images_at(argument: str) -> list[tuple[str, str]]:
    path = epath.Path(argument)
    if path.is_dir():
        return [(os.fspath(below), state(below)) for below in image_paths(path)]
    if not path.exists():
        raise TreeError(f"{argument}: no such file or folder")
    return [(argument, state(argument))]


def state(path: str | os.PathLike) -> str:
    """Returns what tells a file from another one: size and time; "" of what cannot be looked at."""
    try:
        about = Path(path).stat()
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _expected(root: epath.Path, class_folders: Mapping[str, str], splits: tuple[str, ...]) -> str:
    branches = f"{{{','.join(splits)}}}/" if splits else ""
    meaning = ", ".join(f"{folder} = {label}" for folder, label in class_folders.items())
    endings = "/".join(ending[1:] for ending in images.FORMATS)
    return (
        f"expected {root.name}/{branches}{{{','.join(class_folders)}}}/*.({endings}) "
        f"of 8 bits a channel ({meaning})"
    )


def _list_images(
    root: epath.Path, class_folders: Mapping[str, str], splits: tuple[str, ...]
) -> tuple[list[ListedFile], list[str]]:
    """Returns the images sorted by id, without groups, and what does not belong in the tree."""
    offenders = []
    files = []
    parents = {split: root / split for split in splits} if splits else {"": root}
    if splits:
        offenders += [
            f"{child.name}: unexpected {'folder' if child.is_dir() else 'file'}"
            for child in tree_files.children(root)
            if child.name not in splits
        ]
    for split, parent in parents.items():
        if not parent.is_dir():
            offenders.append(f"{split}: folder is missing")
            continue
        present = {child.name: child for child in tree_files.children(parent)}
        prefix = f"{split}/" if split else ""
        for name, child in present.items():
            if name not in class_folders or not child.is_dir():
                kind = "class folder" if child.is_dir() else "file outside the class folders"
                offenders.append(f"{prefix}{name}: unexpected {kind}")
        for name, label in class_folders.items():
            if name not in present:
                offenders.append(f"{prefix}{name}: class folder is missing")
                continue
            below = list(tree_files.walk(present[name]))
            if not below:
                offenders.append(f"{prefix}{name}: class folder is empty")
            for path in below:
                id_ = path.relative_to(root).as_posix()
                if why := tree_files.broken_link(path):
                    offenders.append(f"{id_}: {why}")
                else:
                    files.append(ListedFile(path, id_, split, label, group=""))
    return sorted(files, key=lambda file: file.id), offenders


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _check_file(path: Path) -> tuple[bytes, str]:
    """Returns the content's digest, and why the file cannot be used ("" where it can)."""
    data = path.read_bytes()
    return _sha256(data), _why_unusable(path, data)


def _why_unusable(path: Path, data: bytes) -> str:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    expected = images.FORMATS.get(path.suffix.lower())
    if expected is None:
        return f"unexpected ending {path.suffix!r}"
    if not data:
        return "zero bytes"
    try:
        with images.opened(io.BytesIO(data)) as image:
            actual = images.format_of(image)
            if actual != expected:
                return f"wrongly named: holds {actual}, not {expected}"
            image.load()
    except images.RefusedError as error:
        return str(error)
    except images.ImageError as error:
        return f"cannot be decoded ({error})"
    return ""


def _read_groups(root: epath.Path, files: Iterable[ListedFile]) -> tuple[dict[str, str], list[str]]:
    return file_tables.read(Path(root / "groups.csv"), "group", {file.id for file in files})


def _copies(
    files: tuple[ListedFile, ...], digests: list[bytes]
) -> Iterator[tuple[bytes, list[ListedFile]]]:
    """Sets of files with the same bytes, and the digest of these."""
    by_digest = collections.defaultdict(list)
    for file, digest in zip(files, digests, strict=True):
        by_digest[digest].append(file)
    return ((digest, same) for digest, same in by_digest.items() if len(same) > 1)


def _contradictions(files: tuple[ListedFile, ...], digests: list[bytes]) -> list[str]:
    return [
        "same bytes under different labels: "
        + ", ".join(f"{file.id} ({file.label})" for file in same)
        for digest, same in _copies(files, digests)
        # Empty files are alike and are named already.
        if len({file.label for file in same}) > 1 and digest != _sha256(b"")
    ]


def _complaint(root: epath.Path, offenders: list[str], expected: str) -> str:
    shown = offenders[:_SHOWN_OFFENDERS]
    rest = len(offenders) - len(shown)
    more = [f"... and {rest} more"] if rest else []
    noun = "problem" if len(offenders) == 1 else "problems"
    return "\n  ".join([f"{root}: {len(offenders)} {noun}; {expected}", *shown, *more])


def _fingerprint(files: Iterable[ListedFile], digests: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        total.update(file.id.encode("utf-8", "surrogateescape") + b"\0" + digest)
    return total.hexdigest()


def _listing_fingerprint(files: Iterable[ListedFile], digests: Iterable[bytes]) -> str:
    """Of ids and contents, and of labels and splits that an id does not tell, as of a table."""
    files = list(files)
    told = [
        f"{file.id}\0{name}"
        for file in files
        for name in filter(None, (file.split, file.label))
        if name not in file.id.split("/")[:-1]
    ]
    fingerprint = _fingerprint(files, digests)
    if not told:
        return fingerprint
    more = "\0".join([fingerprint, *told]).encode("utf-8", "surrogateescape")
    return hashlib.sha256(more).hexdigest()


def _notes(
    tree: Tree, digests: list[bytes], published: Mapping[str, Mapping[str, int]] | None
) -> Iterator[str]:
    counts = tree.counts()
    if published is not None and counts != published:
        differing = [
            f"{split}/{label} {counts.get(split, {}).get(label, 0)} (published {number})"
            for split, numbers in published.items()
            for label, number in numbers.items()
            if counts.get(split, {}).get(label, 0) != number
        ]
        yield f"{tree.root.name}: counts differ from the published ones: {', '.join(differing)}"
    across = sum(len({file.split for file in same}) > 1 for _, same in _copies(tree.files, digests))
    if across:
        yield f"{tree.root.name}: {across} pictures have the same bytes in more than one split"
