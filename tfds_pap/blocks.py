"""What a cut must keep together: groups, joined where images of two of them show the same thing."""

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def join(groups: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Joins groups over pairs of images, however long the chain.

    Args:
        groups: From id to group, "" where unknown: such an image is a group of its own.
        pairs: Ids of images that belong together.

    Returns:
        From id to the name of its block: of the first of its groups, or of its first image.
    """
    names = {
        image: f"group {group}" if group else f"image {image}" for image, group in groups.items()
    }
    distinct = sorted(set(names.values()))
    place = {name: number for number, name in enumerate(distinct)}
    ends = np.array([(place[names[a]], place[names[b]]) for a, b in pairs], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (len(distinct),) * 2)
    _, component = connected_components(graph, directed=False)
    # The first of each component in order of name.
    first = {part: distinct[number] for number, part in reversed([*enumerate(component)])}
    return {image: first[component[place[name]]] for image, name in names.items()}
