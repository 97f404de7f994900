"""Says where a model gives one class to nearly every image: then no single figure can be trusted.

A model that names everything SCC has an HSIL+ sensitivity of 100 %, and one that names everything
NILM a specificity of 100 %.
"""

from collections.abc import Sequence

import numpy as np

#: Share of the images from which on it is said.
SHARE = 0.95


def remark(
    named: np.ndarray,
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
    noun: str = "test images",
) -> str:
    """Returns a plain sentence where one class is given to 95 % of the images or more, else "".

    Args:
        named: Class that each image was given, int64 ``[n]``.
        class_names: Class names, which `named` and `labels` index.
        labels: True classes, int64 ``[n]``; None where they are not known.
        noun: What the images are called.

    Example:
        >>> remark(np.array([1, 1]), ("NILM", "SCC"), np.array([0, 1]))
        'SCC is what it names 2 of 2 test images (100.0 %); 1 of the 2 are SCC (50.0 %).'
    """
    if not len(named):
        return ""
    counts = np.bincount(named, minlength=len(class_names))
    most, total = int(counts.argmax()), len(named)
    if counts[most] < SHARE * total:
        return ""
    name = class_names[most]
    sentence = (
        f"{name} is what it names {counts[most]:,} of {total:,} {noun} "
        f"({100 * counts[most] / total:.1f} %)"
    )
    if labels is None:
        return f"{sentence}."
    true = int((labels == most).sum())
    return f"{sentence}; {true:,} of the {total:,} are {name} ({100 * true / total:.1f} %)."
