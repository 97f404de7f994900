"""The page of an audit: what it found, and its pairs side by side, the harmful ones first."""

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np
import tensorflow_datasets.public_api as tfds

from tfds_pap import files, leak_audit, pipeline
from tfds_pap.answer import Answer, Figure

#: Its name in a run directory.
NAME = "audit.html"

#: Pairs of each data set that are shown, and pixels of a picture.
_SHOWN = 120
_PIXELS = 128


def write(path: Path, audits: Sequence[tuple[leak_audit.Audit, tfds.core.DatasetBuilder]]) -> None:
    """Writes one page about one or more data sets; it loads nothing from outside.

    Args:
        path: The page.
        audits: What was found in each data set, and its images.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfds_pap", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    sets = [_section(audit, builder) for audit, builder in audits]
    page = environment.get_template("audit_page.html.j2")
    text = page.render(sets=sets, answer=answer([audit for audit, _ in audits]))
    files.write_atomically(path, text)


def answer(audits: Sequence[leak_audit.Audit]) -> Answer:
    """Sums audits up.

    Args:
        audits: What was found in each data set, at least one.
    """
    looked = [audit for audit in audits if audit.effort != "off"]
    parts = []
    for audit in looked:
        pairs, groups = sum(bool(why(pair)) for pair in audit.pairs), len(audit.shared_groups)
        if pairs:
            parts.append(f"{pairs:,} pair{'s' if pairs > 1 else ''} apart in {audit.dataset}")
        if groups:
            parts.append(
                f"{groups:,} group{'s' if groups > 1 else ''} on both sides of {audit.dataset}"
            )
    if parts:
        sentence = f"Yes: {', '.join(parts)}."
    else:
        pairs = sum(len(audit.pairs) for audit in looked)
        sentence = f"No: of {pairs:,} pairs that show the same thing none lies apart."
        if not looked:
            sentence = "No picture was compared."
    limits = list(dict.fromkeys(audit.blindness() for audit in audits))
    return Answer(
        "Does the same picture, or group, lie on both sides of a split, or under two labels?",
        sentence,
        [_figure(audit) for audit in audits],
        f"{'. '.join(limits)}.",
    )


def _figure(audit: leak_audit.Audit) -> Figure:
    if audit.effort == "off":
        return Figure("not looked", "", audit.dataset)
    if audit.held_out:
        count = sum(len(audit.ids[name]) for name in audit.held_out)
        value, names = f"{len(audit.twins):,} of {count:,}", " and ".join(audit.held_out)
        return Figure(value, "a count", f"{names} images of {audit.dataset} with a twin in train")
    words = f"pairs of images of {audit.dataset} that show the same thing"
    return Figure(f"{len(audit.pairs):,}", "a count", words)


def ordered(pairs: Sequence[leak_audit.Pair]) -> list[leak_audit.Pair]:
    """Returns pairs, the most harmful first; of equal ones the most similar.

    Args:
        pairs: Of one audit.
    """
    return sorted(pairs, key=lambda pair: (*pair.harm, -pair.similarity))


def shown_words(pairs: Sequence[leak_audit.Pair], shown: int) -> str:
    """Says how many of how many pairs are shown, in the terms of the audit's table.

    Args:
        pairs: All pairs.
        shown: How many.
    """
    counts = {
        "across splits": sum(pair.across for pair in pairs),
        "with different labels": sum(pair.contradicts for pair in pairs),
        "across groups": sum(pair.between_groups for pair in pairs),
    }
    named = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    first = "the most harmful first" if named else "the most similar first"
    return f"{shown:,} of {len(pairs):,} suspect pairs ({named or 'none across'}), {first}."


def why(pair: leak_audit.Pair) -> str:
    """Says what harm a pair does; "" for none that is known."""
    said = [
        "on both sides of the split" if pair.across else "",
        f"different labels: {pair.labels[0]} and {pair.labels[1]}" if pair.contradicts else "",
        "different groups" if pair.between_groups else "",
    ]
    return "; ".join(filter(None, said))


def alike(pair: leak_audit.Pair) -> str:
    """Says how alike the two are."""
    return f"{pair.kind}, similarity {pair.similarity:.3f}, overlap {pair.overlap:.0%}"


def what(pair: leak_audit.Pair) -> str:
    """Says how alike the two are, and what was done to one of them."""
    return ": ".join(filter(None, (alike(pair), pair.alignment.words())))


def sides(pair: leak_audit.Pair) -> tuple[str, ...]:
    """Says label, group where known and split of both."""
    return tuple(
        ", ".join(filter(None, (label, group, split)))
        for label, group, split in zip(pair.labels, pair.groups, pair.splits, strict=True)
    )


def pictures(
    pairs: Sequence[leak_audit.Pair], builder: tfds.core.DatasetBuilder, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns both pictures of each pair, the second laid on the first.

    Args:
        pairs: Which.
        builder: Of the images.
        size: Pixels, height and width.

    Returns:
        uint8 RGB `[size, size, 3]` each.
    """
    ids = list(dict.fromkeys(image for pair in pairs for image in (pair.first, pair.second)))
    picture_of = dict(zip(ids, pipeline.read_images(builder, ids, size, "area"), strict=True))
    return [(picture_of[pair.first], pair.alignment.lay(picture_of[pair.second])) for pair in pairs]


def _section(audit: leak_audit.Audit, builder: tfds.core.DatasetBuilder) -> dict[str, object]:
    summary = audit.summary()
    shown = ordered(audit.pairs)[:_SHOWN]
    return {
        "name": audit.dataset,
        "line": summary["line"],
        "headings": list(summary["pairs"][leak_audit.IDENTICAL]),
        "counts": {
            kind: ["unknown" if n is None else f"{n:,}" for n in counts.values()]
            for kind, counts in summary["pairs"].items()
        },
        "shown": shown_words(audit.pairs, len(shown)),
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "why": why(pair),
                "what": what(pair),
                "sides": sides(pair),
                "pictures": [_data_uri(picture) for picture in both],
            }
            for pair, both in zip(shown, pictures(shown, builder, _PIXELS), strict=True)
        ],
    }


def _data_uri(picture: np.ndarray) -> str:
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85]
    )
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
