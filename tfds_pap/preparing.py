"""From image files to a prepared dataset: builders, where they lie, and what tells them apart."""

import contextlib
import functools
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets.public_api as tfds
from google.protobuf import json_format

from tfds_pap import (
    class_table,
    copies,
    files,
    folders,
    layouts,
    stored_classes,
    stored_groups,
    urls,
)
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError


def prepare(
    name: str,
    source: str,
    manual_dir: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
    """Returns a prepared builder; prepares it where that was not done, or where its tree changed.

    Args:
        name: "pap_db3" or "pap_db4".
        source: "original" or "phantom".
        manual_dir: Folder that holds `DB_3` and `DB_4`, or its URL, of which the tree is copied;
            needed by "original" the first time.
        data_dir: Where TFDS keeps prepared data; None takes TFDS's own default.

    Raises:
        folders.TreeError: If the tree cannot be used.
        urls.UrlError: If it lies behind a URL, and cannot be copied from there.

    Example:
        >>> builder = replication.prepare_images("pap_db4", "original", "drawn", "prepared")
        >>> builder.info.splits["validation"].num_examples
        12
    """
    with _metadata_read(name, data_dir):
        builder = tfds.builder(f"{name}/{source}", data_dir=data_dir)
        _read_metadata(builder)
    if manual_dir is not None and urls.is_url(str(manual_dir)):
        manual_dir = copies.folder(manual_dir, builder.TREE).parent
    reuse = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    if builder.is_prepared():
        now = _fingerprint_now(builder, manual_dir)
        if now not in (None, builder.info.metadata.get("fingerprint")):
            print(f"Note: {name}/{source} changed since it was prepared; preparing it again")
            reuse = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    elif source == "original":
        if manual_dir is None:
            raise folders.TreeError(
                f"{name}/original is not prepared: give --manual_dir, the folder that holds "
                f"{builder.TREE}\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        if not Path(manual_dir).is_dir():
            raise folders.TreeError(f"--manual_dir={manual_dir}: no such folder")
    builder = _prepare(builder, manual_dir, reuse)
    if source == "original" and manual_dir is not None:
        tree = Path(manual_dir) / builder.TREE
        stored_groups.renew(builder, folders.read_groups(tree, builder.CLASS_FOLDERS))
    return builder


def prepare_folders(
    root: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder of any tree of class folders; see `prepare_listing`.

    Args:
        root: The tree, in any layout that `layouts.read` recognises.
        data_dir: Where TFDS keeps prepared data; None takes TFDS's own default.

    Raises:
        folders.TreeError: If the tree cannot be used.
    """
    return prepare_listing(layouts.read(Path(root).expanduser()), data_dir)


#: Data set of a lab's own images, by stage.
FOLDER_SETS = {1: "pap_rois", 2: "pap_folders"}


def prepare_listing(
    listing: layouts.Listing, data_dir: str | os.PathLike | None = None, *, stage: int = 2
) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder of a lab's own images.

    Its name holds the fingerprint of the images, so that a changed tree is another data set; other
    groups are not, nor is what `classes.csv` says, beside the order of the classes.

    Args:
        listing: The images.
        data_dir: Where TFDS keeps prepared data; None takes TFDS's own default.
        stage: 1 (cells and backgrounds) or 2.

    Raises:
        folders.TreeError: If the tree cannot be used.
        PapError: If `classes.csv` cannot be used.
    """
    builder = listing_builder(listing, data_dir, stage=stage)
    classes = builder.builder_config.classes
    builder = _prepare(builder, None, tfds.GenerateMode.REUSE_DATASET_IF_EXISTS)
    stored_groups.renew(builder, {file.id: file.group for file in listing.files})
    stored_classes.renew(builder, classes if classes.is_declared else None)
    return builder


def listing_builder(
    listing: layouts.Listing, data_dir: str | os.PathLike | None = None, *, stage: int = 2
) -> tfds.core.DatasetBuilder:
    """Returns the builder that `prepare_listing` prepares; see there."""
    # Not at the top: the dataset folders import this package themselves.
    from tfds_pap.pap_folders import pap_folders_dataset_builder as pap_folders

    kind, classes = pap_folders.PapRois, Classes.known(listing.class_names)
    if stage == 2:
        # A table of classes is about those of the second stage.
        kind = pap_folders.Builder
        classes = class_table.of_tree(listing.root, listing.class_names)
    with _metadata_read(kind.name, data_dir):
        builder = kind(config=pap_folders.config(listing, classes), data_dir=data_dir)
        _read_metadata(builder)
    return builder


@contextlib.contextmanager
def _metadata_read(name: str, data_dir: str | os.PathLike | None) -> Iterator[None]:
    """Says in one line that what TFDS keeps of prepared images cannot be read.

    Raises:
        PapError: If one of its JSON files is damaged.
    """
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, json_format.ParseError):
        place = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
        raise PapError(
            f"{place}: dataset_info.json or metadata.json of prepared images is damaged; delete "
            "that folder, and they are prepared again"
        ) from None


def _read_metadata(builder: tfds.core.DatasetBuilder) -> None:
    """Reads what TFDS would read when it is first asked for."""
    if builder.is_prepared():
        builder.info.metadata.get("fingerprint")


def find_prepared(
    name: str, fingerprint: str, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder | None:
    """Returns the prepared images of a lab by their fingerprint; None where they are not here.

    Args:
        name: Of the data set, one of `FOLDER_SETS`.
        fingerprint: As their metadata say it.
        data_dir: Where TFDS keeps prepared data; None takes TFDS's own default.
    """
    place = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
    for version in sorted(place.glob(f"*_{fingerprint[:12]}*/*/dataset_info.json")):
        with _metadata_read(name, data_dir):
            builder = tfds.builder_from_directory(version.parent)
        if builder.info.metadata.get("fingerprint") == fingerprint:
            return builder
    return None


def _prepare(
    builder: tfds.core.DatasetBuilder,
    manual_dir: str | os.PathLike | None,
    mode: tfds.GenerateMode,
) -> tfds.core.DatasetBuilder:
    config = tfds.download.DownloadConfig(
        manual_dir=None if manual_dir is None else os.path.abspath(manual_dir),  # noqa: PTH100
        download_mode=mode,
    )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if not builder.is_prepared():
        # Before every image of a tree is read.
        if fault := files.why_unwritable(Path(builder.data_dir)):
            raise PapError(f"--data_dir={builder.data_dir}: {fault}")
        drawn = getattr(builder.builder_config, "phantom_counts", None) is not None
        print(f"{'Drawing the images of' if drawn else 'Preparing'} {builder.name}", flush=True)
    # It announces downloads of unknown size where nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()) as held:
        builder.download_and_prepare(download_config=config)
    for line in held.getvalue().splitlines():
        if line.startswith("Note: "):
            print(line)
    return builder


def identity(builder: tfds.core.DatasetBuilder) -> str:
    """Returns what results depend on: the fingerprint of the images and, where known, of groups.

    Args:
        builder: A prepared builder.
    """
    further = {
        "groups": stored_groups.digest_now(builder),
        "classes": stored_classes.digest(builder),
    }
    known = [f"{name} {digest}" for name, digest in further.items() if digest]
    return " ".join([builder.info.metadata["fingerprint"], *known])


def _fingerprint_now(
    builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike | None
) -> str | None:
    if builder.builder_config.phantom_counts is not None:
        return builder.phantom_fingerprint()
    if manual_dir is None:
        return None
    return folders.fingerprint(Path(manual_dir) / builder.TREE, builder.CLASS_FOLDERS)


@functools.lru_cache(maxsize=1)
def open_prepared(data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens what was prepared, in a worker of a cluster; it stays open.

    Raises:
        PapError: If there are no prepared images.
    """
    try:
        return tfds.builder_from_directory(data_dir)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PapError(f"{data_dir}: a worker sees no prepared images there ({reason})") from None
