"""A labelled set of phantoms: the examples of a split, and trees in the authors' layout."""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from tfds_pap import files, phantom, taxonomy
from tfds_pap.phantom_canvas import Stream, generator

JPEG_QUALITY = 95


def encode(image: np.ndarray) -> bytes:
    """JPEG bytes (quality 95) of a uint8 [height, width, 3] RGB picture."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def examples(
    stage: int, split: str, *, per_class: int, seed: int = 0, slides: int = 100
) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yields the examples of one split in a stable order.

    A picture depends on the stage, the split, its class, its index, `seed` and `slides`, never on
    `per_class`: asking for more adds pictures and changes none.

    Args:
        stage: 1 (150 px ROIs, cell or background) or 2 (250 px, four classes).
        split: 'train' or 'validation'.
        per_class: How many pictures of each class.
        seed: Non-negative; another seed is another data set.
        slides: How many slides both splits have together, at least 2. A fifth of them (the last)
            belongs to validation and no other split.

    Yields:
        Path such as 'train/1/train_1_0.jpg' (relative to DB_3 or DB_4), class, group such as
        'slide_07', and the uint8 RGB picture.

    Raises:
        ValueError: The stage or split is unknown, or there are too few slides.
    """
    splits = ("train", "validation")
    if stage not in (1, 2):
        raise ValueError(f"stage must be 1 or 2; got {stage!r}")
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}; got {split!r}")
    if slides < 2:
        raise ValueError(f"slides must be at least 2, one for each split; got {slides}")
    held_out = max(slides // 5, 1)
    first, last = (0, slides - held_out) if split == "train" else (slides - held_out, slides)
    folders = taxonomy.DB3_FOLDERS if stage == 1 else taxonomy.DB4_FOLDERS
    draw = phantom.draw_roi if stage == 1 else phantom.draw_cell
    for digit, label in folders.items():
        for index in range(per_class):
            key = (stage, splits.index(split), int(digit), index)
            rng = generator(Stream.EXAMPLE, seed, *key)
            number, image_seed = int(rng.integers(first, last)), int(rng.integers(0, 2**62))
            slide = int(generator(Stream.SLIDE, seed, number).integers(0, 2**62))
            name = f"{split}/{digit}/{split}_{digit}_{index}.jpg"
            yield name, label, f"slide_{number:02d}", draw(label, image_seed, slide=slide)


def write_tree(
    root: Path, *, db3: Mapping[str, int], db4: Mapping[str, int], seed: int = 0, slides: int = 100
) -> None:
    """Writes phantoms in the layout of the authors' trees.

    Args:
        root: Folder that gets `DB_3` and `DB_4`, each with a `groups.csv`.
        db3: Pictures per class for each split, for instance `{'train': 100, 'validation': 25}`;
            a tree without counts, or with none above 0, is not written.
        db4: The same for stage 2.
        seed: Non-negative; another seed is another data set.
        slides: How many slides both splits have together, at least 2.

    Raises:
        FileExistsError: `root` already has a tree that is asked for.
        ValueError: There are too few slides.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    trees = [(s, n, c) for s, n, c in ((1, "DB_3", db3), (2, "DB_4", db4)) if any(c.values())]
    for _, name, _ in trees:
        if (root / name).exists():
            raise FileExistsError(f"{root / name} is already there; phantoms need a free place")
    # Drawn beside and then renamed: an interrupted run leaves no half tree under the final name.
    with tempfile.TemporaryDirectory(dir=root, prefix=".phantom_") as scratch:
        for stage, name, counts in trees:
            Path(scratch, name).mkdir()
            rows = [("file", "group")]
            for split, count in counts.items():
                drawn = examples(stage, split, per_class=count, seed=seed, slides=slides)
                for file, _, group, image in drawn:
                    path = Path(scratch, name, file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode(image))
                    rows.append((file, group))
            with Path(scratch, name, "groups.csv").open("w", newline="", encoding="utf-8") as table:
                csv.writer(table, lineterminator="\n").writerows(rows)
        for _, name, _ in trees:
            Path(scratch, name).rename(root / name)


def write_fields(folder: Path, count: int, seed: int = 0) -> None:
    """Draws whole fields, each of a slide of its own, and the truth of each.

    No picture of `examples` is of one of these slides.

    Args:
        folder: Gets `phantom_00.jpg` and so on, and `nuclei.csv` (`field,x,y,label`: every nucleus,
            in pixels).
        count: How many fields.
        seed: Number of the first field and slide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = [("field", "x", "y", "label")]
    for number in range(seed, seed + count):
        path = folder / f"phantom_{number:02d}.jpg"
        image, truth = phantom.draw_field(number, slide=number)
        rows += [(path.name, cell.x, cell.y, cell.label) for cell in truth]
        path.write_bytes(encode(image))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    files.write_atomically(folder / "nuclei.csv", table.getvalue())
