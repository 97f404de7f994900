"""Can a tree be the authors' own? Holds it against what is published of theirs.

The authors published names, a format, a size and counts, but no checksum: a tree may contradict
its owner's word, and nothing can prove it.
"""

import collections
import io
import re
from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds
from PIL import Image

from tfds_pap import images, pipeline

#: Share that may differ: counts are published as "about", and one public copy lacks 4 of 200.
TOLERANCE = 0.05


def contradictions(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Says what keeps a tree from being the authors' own.

    Args:
        builder: Prepared from a tree; its `PUBLISHED_...` are held against its images. A
            `groups.csv`, which the authors lack, is no contradiction.

    Returns:
        A phrase for each published fact that is not met; none where all agrees.

    Example:
        >>> contradictions(tfds.builder("pap_db4/original"))  # doctest: +SKIP
        ['validation/SCC has 8 images (published: 200)']
    """
    counts = builder.info.metadata["counts"]
    differing_counts = [
        f"{split}/{name} has {counts.get(split, {}).get(name, 0):,} images (published: {count:,})"
        for split, names in builder.PUBLISHED_COUNTS.items()
        for name, count in names.items()
        if abs(counts.get(split, {}).get(name, 0) - count) > TOLERANCE * count
    ]
    total, odd = 0, collections.defaultdict(list)
    for id_, data in pipeline.stored_files(builder):
        total += 1
        for difference in _differences(builder, id_, data):
            odd[difference].append(id_)
    return differing_counts + [
        f"{len(ids):,} of {total:,} images are {difference}, such as {min(ids)}"
        for difference, ids in odd.items()
        if len(ids) > TOLERANCE * total
    ]


def _differences(builder: tfds.core.DatasetBuilder, id_: str, data: bytes) -> Iterator[str]:
    # Only the header is read.
    with Image.open(io.BytesIO(data)) as image:
        form, size = images.format_of(image), image.size
    if form != "JPEG":
        yield "no JPEGs"
    side = builder.PUBLISHED_PIXELS
    if side and size != (side, side):
        yield f"not {side} x {side} px"
    if not re.fullmatch(builder.PUBLISHED_NAME, id_):
        yield f"not named like {builder.PUBLISHED_NAME_EXAMPLE}"
