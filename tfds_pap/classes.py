"""What is known of the classes of a data set beside their names: order, and what is looked for.

The names of the Bethesda System and of stage 1 say it themselves; a lab's own are declared in
`classes.csv`, and what nobody declared is not assumed.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from tfds_pap.taxonomy import STAGE1_CLASSES

#: Every squamous category of the Bethesda System in order of severity; the papers leave the
#: atypical ones out.
BETHESDA = ("NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC")

#: What stage 2 looks for.
_SEVERE = ("HSIL", "SCC")


@dataclasses.dataclass(frozen=True)
class Classes:
    """What is known of the classes of a data set beside their names.

    Attributes:
        names: In the order of the probabilities.
        shown: What each is called in pages and pictures.
        ordered: Whether the order is one of severity; without it there is no quadratic kappa and
            no most severe class.
        positive: Names of those that are looked for; none where nobody said.
        positive_name: What these are called together.
    """

    names: tuple[str, ...]
    shown: tuple[str, ...]
    ordered: bool = False
    positive: tuple[str, ...] = ()
    positive_name: str = "positive"

    @classmethod
    def known(cls, names: Sequence[str]) -> Self:
        """Returns what the names alone tell: those of the Bethesda System and of stage 1.

        Args:
            names: In the order of the probabilities.

        Example:
            >>> Classes.known(("NILM", "LSIL", "HSIL", "SCC")).positive_name
            'HSIL+'
            >>> Classes.known(("Koilocytotic", "Parabasal")).ordered
            False
        """
        names = tuple(names)
        if set(names) == set(STAGE1_CLASSES):
            return cls(names, names, True, STAGE1_CLASSES[-1:], STAGE1_CLASSES[-1])
        ranks = [_rank(name) for name in names]
        if None in ranks or len(set(ranks)) < len(names):
            return cls(names, names)
        positive = tuple(
            name for name, rank in zip(names, ranks, strict=True) if BETHESDA[rank or 0] in _SEVERE
        )
        if len(positive) == len(names):
            positive = ()
        return cls(names, names, True, positive, "HSIL+")

    @property
    def severity(self) -> list[int] | None:
        """Class indices in order of severity; None where the classes have no such order."""
        if not self.ordered:
            return None
        ranks = [_rank(name) for name in self.names]
        if None in ranks:
            # A declared order is that of the names.
            return list(range(len(self.names)))
        return sorted(range(len(self.names)), key=lambda n: ranks[n] or 0)

    @property
    def positives(self) -> list[int]:
        """Positions of the positive classes; none where nobody said which these are."""
        return [number for number, name in enumerate(self.names) if name in self.positive]

    @property
    def severe(self) -> list[int]:
        """Positions of the positive classes where these are a question of their own.

        The cell of stage 1 is one of two classes, and what is asked of it is asked of a class.
        """
        return [] if set(self.names) == set(STAGE1_CLASSES) else self.positives

    @property
    def is_declared(self) -> bool:
        """Whether something is said here that the names alone do not tell."""
        return self != type(self).known(self.names)

    def to_json(self) -> dict[str, Any]:
        """Returns it for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Args:
            fields: Of a JSON file.
        """
        lists = {name: tuple(map(str, fields[name])) for name in ("names", "shown", "positive")}
        return cls(
            **lists, ordered=bool(fields["ordered"]), positive_name=str(fields["positive_name"])
        )


def _rank(name: str) -> int | None:
    """Place of a name among `BETHESDA`, whatever its case and hyphens."""
    plain = re.sub(r"[\s_-]+", "", name).upper()
    ranks = {bethesda.replace("-", ""): rank for rank, bethesda in enumerate(BETHESDA)}
    return ranks.get(plain)


def in_order_of_severity(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts class names: the Bethesda classes by severity, then any others by name.

    Args:
        names: For example the class folders of a tree.

    Example:
        >>> in_order_of_severity(["SCC", "HSIL", "NILM", "Metaplastic", "ASC-US"])
        ('NILM', 'ASC-US', 'HSIL', 'SCC', 'Metaplastic')
    """

    def key(name: str) -> tuple[int, str]:
        rank = _rank(name)
        return (len(BETHESDA) if rank is None else rank, name)

    return tuple(sorted(names, key=key))
