"""Bethesda classes in order of severity, and the authors' folder digits.

The order of severity holds everywhere in this project; the digits of the authors' trees are
translated here and nowhere else.
"""

from collections.abc import Iterable

#: Stage 2, in order of severity (The Bethesda System).
STAGE2_CLASSES = ("NILM", "LSIL", "HSIL", "SCC")

#: Stage 1; the positive class comes last.
STAGE1_CLASSES = ("background", "cell")

#: ``DB_3/{train,validation}/<digit>``.
DB3_FOLDERS = {"0": "cell", "1": "background"}

#: ``DB_4/{train,validation}/<digit>``; the digits are not in order of severity.
DB4_FOLDERS = {"1": "HSIL", "2": "LSIL", "3": "NILM", "4": "SCC"}

#: The authors' trees and what their folders mean.
TREE_FOLDERS = {"DB_3": DB3_FOLDERS, "DB_4": DB4_FOLDERS}


def in_order_of_severity(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts class names: the Bethesda classes by severity, then any others by name.

    Args:
        names: For example the class folders of a tree.

    Example:
        >>> in_order_of_severity(["SCC", "HSIL", "NILM", "ASC-US"])
        ('NILM', 'HSIL', 'SCC', 'ASC-US')
    """
    severity = {name: rank for rank, name in enumerate(STAGE2_CLASSES)}
    return tuple(sorted(names, key=lambda name: (severity.get(name, len(severity)), name)))
