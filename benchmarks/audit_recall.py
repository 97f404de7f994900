"""What the leak audit finds of planted twins, and how often it raises a false alarm.

    python benchmarks/audit_recall.py                       # windows of drawn fields
    python benchmarks/audit_recall.py --fields=DIR          # windows of real fields, DIR/*.jpg

Windows that do not overlap are cut out of whole fields. Each gets one planted twin of every kind.
One kind of twin is looked for at a time. A pair of different windows that is reported is a false
alarm: these are the innocent look-alikes, cells and empty ground of the same slide.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import near_duplicates, views

_FIELDS = flags.DEFINE_string("fields", None, "Folder of field images (default: drawn fields).")
_WINDOW = flags.DEFINE_integer("window", 150, "Window in pixels of a field (default: 150).")
_COUNT = flags.DEFINE_integer("windows", 150, "Windows that get twins (default: 150).")

#: Size in pixels of the published crops; a shift of 10 px is meant at this size.
_CROP = 250
_SHIFT = 10


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Returns what is left of a picture after JPEG compression."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def twins(field: np.ndarray, x: int, y: int, window: int, turn: int) -> dict[str, np.ndarray]:
    """Returns a window of a field, and one twin of each kind, 250 x 250 px."""

    def crop(shift: int = 0) -> np.ndarray:
        moved = round(shift * window / _CROP)
        cut = field[y + moved : y + moved + window, x + moved : x + moved + window]
        return cv2.resize(cut, (_CROP, _CROP), interpolation=cv2.INTER_CUBIC)

    original = jpeg(crop(), 90)
    view = 1 + turn % 7
    return {
        "original": original,
        "copy": original.copy(),
        "flip or turn": np.ascontiguousarray(views.turned(original, view)),
        "JPEG, quality 40": jpeg(original, 40),
        "brighter by 12": np.clip(original.astype(int) + 12, 0, 255).astype(np.uint8),
        f"crop shifted by {_SHIFT} px": jpeg(crop(_SHIFT), 90),
        "shifted, turned, quality 60": jpeg(
            np.ascontiguousarray(views.turned(crop(_SHIFT), view)), 60
        ),
    }


def plant(
    fields: list[np.ndarray], window: int, count: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cuts windows and plants their twins.

    Args:
        fields: uint8 `[height, width, 3]`.
        window: Pixels of a field.
        count: Windows at most.

    Returns:
        Pixels uint8 `[n, 128, 128, 3]`, number of the window `[n]`, kind of each picture.
    """
    places = [
        (field, x, y)
        for field in fields
        # A gap between windows, so that shifted twins do not reach the next one.
        for y in range(0, field.shape[0] - window - window // 5, window + window // 5)
        for x in range(0, field.shape[1] - window - window // 5, window + window // 5)
    ]
    chosen = np.random.default_rng(0).permutation(len(places))[:count]
    pixels, owner, kinds = [], [], []
    for number, place in enumerate(chosen):
        for kind, picture in twins(*places[place], window, number).items():
            size = (near_duplicates.SIZE,) * 2
            pixels.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
            owner.append(number)
            kinds.append(kind)
    return np.stack(pixels), np.array(owner), kinds


def measure(
    pixels: np.ndarray, owner: np.ndarray, kinds: list[str]
) -> dict[str, tuple[float, int]]:
    """Audits the originals with the twins of one kind at a time.

    Returns:
        For each kind the share of twins that are found, and the number of false alarms: pairs of
        different windows.
    """
    found = {}
    for kind in dict.fromkeys(kinds):
        if kind != "original":
            rows = [row for row, other in enumerate(kinds) if other in ("original", kind)]
            pairs = {
                (int(owner[rows[match.first]]), int(owner[rows[match.second]]))
                for match in near_duplicates.find(pixels[rows])
            }
            twins_found = sum(first == second for first, second in pairs)
            found[kind] = (twins_found / len({*owner.tolist()}), len(pairs) - twins_found)
    return found


def drawn_fields(count: int) -> list[np.ndarray]:
    """Returns drawn fields, uint8 RGB."""
    from tfds_pap import phantom

    return [phantom.draw_field(seed, slide=seed // 2)[0] for seed in range(count)]


def main(argv: list[str]) -> None:
    """Plants, audits and prints."""
    del argv
    if _FIELDS.value:
        paths = sorted(Path(_FIELDS.value).glob("*.jpg"))
        fields = [cv2.imread(str(path)) for path in paths]
    else:
        fields = drawn_fields(4)
    pixels, owner, kinds = plant(fields, _WINDOW.value, _COUNT.value)
    start = time.perf_counter()
    found = measure(pixels, owner, kinds)
    seconds = time.perf_counter() - start
    windows = len(set(owner.tolist()))
    print(machine.describe())
    print(f"{windows} windows of {len(fields)} fields, {len(pixels)} pictures, {seconds:.1f} s")
    print(f"{'planted twin':30s}{'found':>8s}{'false alarms':>14s}")
    for kind, (share, alarms) in found.items():
        print(f"{kind:30s}{100 * share:6.1f} %{alarms:14d}")
    print(f"{windows * (windows - 1) // 2} pairs of different windows each time")


if __name__ == "__main__":
    app.run(main)
