"""Drawn crops, each second one a twin of the one before it by mixed changes."""

from concurrent import futures
from pathlib import Path

import numpy as np
import planted_twins as planted
import tqdm


def crops(count: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Draws pixels `[count, 128, 128, 3]`, each odd one a twin of the one before it.

    Args:
        count: How many; even.
        path: `.npy` that they are written to, as many do not fit into memory; what lies there
            with `.structured.npy` beside it is read.

    Returns:
        The pixels, mapped from the file, and whether what each pair shares has structure, bool
        `[count // 2]`.
    """
    beside = path.with_suffix(".structured.npy")
    if beside.exists():
        return np.load(path, mmap_mode="r"), np.load(beside)
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 128, 128, 3))
    structured = np.empty(count // 2, bool)
    with futures.ProcessPoolExecutor() as pool:
        pairs = pool.map(_pair, range(count // 2), chunksize=50)
        for number, (pair, has_structure) in enumerate(tqdm.tqdm(pairs, total=count // 2)):
            pixels[2 * number : 2 * number + 2] = pair
            structured[number] = has_structure
    pixels.flush()
    np.save(beside, structured)
    return np.load(path, mmap_mode="r"), structured


def found(matches: list, structured: np.ndarray) -> tuple[float, int]:
    """Returns the share of planted twins with structure that were found, and how many other pairs.

    Args:
        matches: Of an audit of `crops`.
        structured: From `crops`, of those that were audited.
    """
    hit = np.zeros(len(structured), bool)
    others = 0
    for match in matches:
        if match.first % 2 == 0 and match.second == match.first + 1:
            hit[match.first // 2] = True
        else:
            others += 1
    return round(float(hit[structured].mean()), 4), others


def _pair(number: int) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
    (original,) = planted.drawn(1, number)
    twin = planted.twin(original.picture, "mixed", np.random.default_rng([0, number]))
    small = planted.small(original.picture), planted.small(twin.picture)
    return small, twin.structure >= planted.LEAST_STRUCTURE
