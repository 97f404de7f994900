"""Drawn crops, each second one a twin of the one before it by mixed changes."""

from concurrent import futures

import numpy as np
import planted_twins as planted
import tqdm


def crops(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels `[count, 128, 128, 3]`, each odd one a twin of the one before it.

    Also returns whether what each pair shares has structure, bool `[count // 2]`.
    """
    with futures.ProcessPoolExecutor() as pool:
        pairs = list(tqdm.tqdm(pool.map(_pair, range(count // 2), chunksize=50), total=count // 2))
    pixels = np.stack([picture for pair, _ in pairs for picture in pair])
    return pixels, np.array([structured for _, structured in pairs])


def _pair(number: int) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
    (original,) = planted.drawn(1, number)
    twin = planted.twin(original.picture, "mixed", np.random.default_rng([0, number]))
    small = planted.small(original.picture), planted.small(twin.picture)
    return small, twin.structure >= planted.LEAST_STRUCTURE
