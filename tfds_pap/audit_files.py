"""What an audit reads and writes: features, predictions, pairs.csv, contact sheet, page, json."""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets.public_api as tfds
from PIL import Image, ImageDraw, ImageFont

from tfds_pap import audit_page, files, leak_audit
from tfds_pap.errors import PapError

#: Pairs on the contact sheet, pixels of a picture on it, and columns of pairs.
_SHOWN = 60
_PIXELS = 200
_COLUMNS = 3
_TEXT_LINES = 5
_LINE = 15


class FileError(PapError):
    """A file that cannot be used; the message is one line."""


def read_features(path: Path, ids: np.ndarray) -> np.ndarray:
    """Reads features and puts them into the order of `ids`.

    Args:
        path: An `.npz` with `ids` and `features`.
        ids: The wanted order.

    Returns:
        float32 `[n, d]`.

    Raises:
        FileError: If the file is not readable, or has no features of an image.
    """
    try:
        with np.load(path) as stored:
            row = {image: number for number, image in enumerate(stored["ids"].tolist())}
            features = stored["features"].astype(np.float32)
        features = features[[row[image] for image in ids.tolist()]]
    except KeyError as error:
        raise FileError(f"--features={path}: expected ids and features of {error}") from None
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise FileError(f"--features={path}: not readable ({error})") from None
    if features.ndim != 2 or not np.isfinite(features).all():
        raise FileError(f"--features={path}: expected finite features [n, d]")
    return features


def read_predictions(path: Path, labels: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Reads which test images a model named rightly.

    Args:
        path: A run's `predictions.csv`.
        labels: Class of each image of the data set, by id.

    Returns:
        (id, whether it was named rightly) of each test image.

    Raises:
        FileError: If the file is not readable, lacks columns, has no test images, or is not about
            this data set.
    """
    prefix = "probability_"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [column for column in rows[0] if column.startswith(prefix)]
        tested = [row for row in rows if row["split"] == "test"]
        named = [max(names, key=lambda n: float(row[n])).removeprefix(prefix) for row in tested]
        truth = {row["id"]: row["label"] for row in tested}
    except (OSError, IndexError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise FileError(
            f"--predictions={path}: expected id,split,label,probability_<class> ({error})"
        ) from None
    if not tested:
        raise FileError(f"--predictions={path}: expected rows with split test, got none")
    # The ids of one data set may be those of another; only with their labels are they told apart.
    for image, label in truth.items():
        if labels.get(image) != label:
            known = f"is {labels[image]} there" if image in labels else "is not there"
            raise FileError(
                f"--predictions={path}: expected images of the audited data set, "
                f"but {image} ({label}) {known}"
            )
    return [(row["id"], name == row["label"]) for row, name in zip(tested, named, strict=True)]


def write(audit: leak_audit.Audit, directory: Path, builder: tfds.core.DatasetBuilder) -> None:
    """Writes `pairs.csv`, `audit.json`, a page and, if there are pairs, `contact_sheet.png`.

    Args:
        audit: What was found.
        directory: Where to.
        builder: Of the images.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("first", "second", "kind", "change", "similarity", "overlap", "first_split",
         "second_split", "first_label", "second_label", "first_group", "second_group",
         "matrix_of_128_px")
    )  # fmt: skip
    for pair in audit_page.ordered(audit.pairs):
        writer.writerow(
            (pair.first, pair.second, pair.kind, pair.alignment.words(), pair.similarity,
             pair.overlap, *pair.splits, *pair.labels, *pair.groups,
             " ".join(map(str, pair.matrix)))
        )  # fmt: skip
    files.write_atomically(directory / "pairs.csv", text.getvalue())
    content = {**audit.summary(), "images of groups on both sides": audit.shared_groups}
    files.write_atomically(directory / "audit.json", json.dumps(content, indent=2) + "\n")
    audit_page.write(directory / audit_page.NAME, [(audit, builder)])
    if audit.pairs:
        files.write_atomically(directory / "contact_sheet.png", contact_sheet(audit.pairs, builder))
    else:
        (directory / "contact_sheet.png").unlink(missing_ok=True)


def contact_sheet(pairs: Sequence[leak_audit.Pair], builder: tfds.core.DatasetBuilder) -> bytes:
    """Draws suspect pairs side by side, the second laid on the first, harmful pairs first.

    Args:
        pairs: Suspect pairs.
        builder: Of the images.

    Returns:
        A PNG.
    """
    shown = audit_page.ordered(pairs)[:_SHOWN]
    drawn = audit_page.pictures(shown, builder, _PIXELS)
    font = ImageFont.load_default(12)
    width, height = 2 * _PIXELS + 24, _PIXELS + _TEXT_LINES * _LINE + 18
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height + 28), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 7), audit_page.shown_words(pairs, len(shown)), "black", font)
    for number, pair in enumerate(shown):
        x, y = number % _COLUMNS * width + 8, number // _COLUMNS * height + 28
        for column, picture in enumerate(drawn[number]):
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (x + column * _PIXELS, y))
        colour = "#b03a00" if audit_page.why(pair) else "#1d2329"
        draw.rectangle(
            (x - 2, y - 2, x + 2 * _PIXELS + 1, y + _PIXELS + 1), outline=colour, width=2
        )
        lines = (
            audit_page.alike(pair),
            pair.alignment.words(),
            " | ".join(audit_page.sides(pair)),
            pair.first,
            pair.second,
        )
        for line, text in enumerate(lines):
            place = (x, y + _PIXELS + 4 + line * _LINE)
            draw.text(place, _fitting(text, font, 2 * _PIXELS), colour, font)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cuts the start off a text that is too long; the end of a path tells more."""
    if font.getlength(text) <= width:
        return text
    while font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
