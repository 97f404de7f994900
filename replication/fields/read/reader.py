"""Opens fields of any size: ordinary images, tiled TIFFs, whole slides.

An ordinary image is decoded whole, with the pixels that training would see. Slides and tiled TIFFs
are read piece by piece (`whole_slide`). Either is rescaled where its pixel size is not the one that
the models were trained for (`rescaled`).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from replication.fields.read.field import ArrayField, Field, FieldError
from replication.fields.read.rescaled import SAME_MPP, Rescaled
from tfds_pap import copies, folders, images, redaction, urls

#: Endings of slides, beside those of images that folders are searched for.
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide")

#: Endings of whatever is a field.
_ANY = frozenset({*images.FORMATS, *_SLIDES})

#: Endings of those whose pixels lie in other files.
_SEVERAL = (".mrxs", ".vms", ".vmu")

#: Ordinary images, and how those of them begin that no slide format shares.
_FORMATS = tuple(dict.fromkeys(images.FORMATS.values()))
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")


def open_field(
    path: str | Path, *, mpp: float | None = None, file_mpp: float | None = None
) -> Field:
    """Opens a field.

    Args:
        path: An image (JPEG, PNG, BMP, TIFF; of several pages the first, where the others are
            smaller), or a slide; or the URL of one file, which is copied to this machine.
        mpp: Micrometres per pixel that it is wanted at; None reads every pixel of the file.
        file_mpp: Pixel size of a file that does not state its own. The resolution of JPEG and PNG
            files is not asked: cameras and editors write 72 or 96 dots an inch whatever the lens.

    Returns:
        The field; its `notes` say how it is read.

    Raises:
        FieldError: If it cannot be read; one line that names the file.

    Example:
        >>> with open_field("slide.svs", mpp=0.25) as field:  # doctest: +SKIP
        ...     pixels = field.read(1000, 2000, 150, 150)
    """
    path = local(str(path))
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise FieldError(f"{path}: expected an image ({error})") from None
    if not start:
        raise FieldError(f"{path}: expected an image, got no bytes")
    field = None
    # OpenSlide is loaded for what may be a slide alone.
    if path.suffix.lower() in _SLIDES or not start.startswith(_MAGIC):
        field = _slide(path, file_mpp)
    if field is None:
        field = ArrayField(path.name, _decoded(path), mpp=file_mpp)
    if mpp is None or (field.mpp and abs(field.mpp / mpp - 1) <= SAME_MPP):
        return field
    if field.mpp is None:
        field.notes += (
            f"its pixel size is not known: read as if it were {mpp:g} micrometres (give "
            "--field_mpp, or rescale the file)",
        )
        return field
    return Rescaled(field, mpp)


def local(path: str) -> Path:
    """Returns where a field's file lies on this machine.

    Args:
        path: Of the field; behind a URL it is copied first.

    Raises:
        FieldError: If it cannot be copied, or is one of several files.
    """
    if not urls.is_url(path):
        return Path(path)
    if urls.name(path).lower().endswith(_SEVERAL):
        shown = redaction.redacted(path)
        raise FieldError(f"{shown}: a slide of several files has no URL; copy them to this machine")
    try:
        return copies.local(path)
    except urls.UrlError as error:
        raise FieldError(str(error)) from None


def expand_fields(arguments: Iterable[str]) -> list[str]:
    """Returns the fields that arguments name: files as they are, of folders all below them.

    Args:
        arguments: Files, folders and URLs of these. What a URL names that ends as a field does is
            looked for when it is read.

    Raises:
        folders.TreeError: One does not exist, or is a folder without a field.
        urls.UrlError: A URL of a folder cannot be listed.
    """
    paths: list[str] = []
    for argument in arguments:
        if urls.is_url(argument):
            paths += _fields_behind(argument)
        elif Path(argument).is_dir():
            paths += map(str, _fields_of(argument, map(Path, folders.image_paths(argument, _ANY))))
        else:
            paths += folders.expand_images([argument])
    return paths


def _fields_behind(url: str) -> list[str]:
    ending = Path(urls.name(url)).suffix.lower()
    # Web servers list no folders, and a list of slides is not asked for one by one.
    if ending in {*_ANY, *_SEVERAL} or urls.is_web(url):
        return [url]
    listed = urls.below(url)
    if listed and not listed[0].relative:
        return [url]
    url_of = {Path(each.relative): each.url for each in listed}
    return [url_of[path] for path in _fields_of(url, url_of)]


def _fields_of(folder: str, files: Iterable[Path]) -> list[Path]:
    """Returns those of a folder's files that are fields, in their order."""
    below = [path for path in files if path.suffix.lower() in _ANY]
    # A .mrxs keeps its pixels in a folder of its name.
    inside = {each.with_suffix("") for each in below if each.suffix.lower() == ".mrxs"}
    fields = [each for each in below if not inside.intersection(each.parents)]
    if not fields:
        raise folders.TreeError(f"{redaction.redacted(folder)}: holds no field")
    return fields


def _slide(path: Path, file_mpp: float | None) -> Field | None:
    """Opens what OpenSlide knows, else returns None."""
    try:
        from replication.fields.read import whole_slide
    except (ImportError, OSError) as error:
        if path.suffix.lower() in _SLIDES:
            raise FieldError(f"{path}: needs OpenSlide, which does not load ({error})") from None
        return None
    return whole_slide.open_slide(path, file_mpp)


def _decoded(path: Path) -> np.ndarray:
    try:
        with images.opened(path, _FORMATS) as image:
            if image.format == "TIFF":
                return images.tiff_pixels(image)
        return images.decode(path.read_bytes())
    except images.UnknownFormatError:
        kinds = f"{', '.join(_FORMATS)} or a slide"
        raise FieldError(f"{path}: expected an image: {kinds}") from None
    except images.TooLargeError as error:
        raise FieldError(f"{path}: {error}; convert it to a tiled TIFF") from None
    except images.RefusedError as error:
        raise FieldError(f"{path}: {error}") from None
    except images.ImageError as error:
        raise FieldError(f"{path}: cannot be decoded ({error})") from None
