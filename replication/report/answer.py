"""What a run's page and model card open with."""

from collections.abc import Sequence

from replication.drawing.shown import shown
from replication.measures.published import Source
from replication.runs import results
from tfds_pap.answer import Answer, Figure

_AGAINST = {
    "agrees": "agrees with the published figure",
    "lower": "is lower than published",
    "higher": "is higher than published",
    "no": "cannot be set beside a published interval",
}

_ALONE = "The figures hold for these test images alone: crops that people chose, not whole smears."

_LIMITS: dict[Source, str] = {
    "original": "Intervals that overlap do not prove two models equal. " + _ALONE,
    "phantom": "These images are drawings. Nothing here says how well the networks read real "
    "smears, and no published figure is replicated.",
    "stand-in": "These are not the papers' images, so no published figure is replicated. " + _ALONE,
    "undeclared": "Nobody declared these to be the papers' images, so no published figure is "
    "replicated. " + _ALONE,
}


def answer(rows: Sequence[results.Row], source: Source) -> Answer:
    """Sums a run up.

    Args:
        rows: One for each stage and protocol, from `results.summary_rows`; perhaps none yet.
        source: Whose images these are.
    """
    question = "What accuracy do the papers' networks reach on these images, with and without the "
    question += "defects of the published code?"
    if source == "original":
        question = "Do the published accuracies come back, and what is left of them without the "
        question += "defects of the published code?"
    figures = [
        Figure(*_accuracy(row), f"accuracy, stage {row.stage}, {row.protocol} protocol")
        for row in rows
    ]
    return Answer(
        question,
        _sentence(rows, source) if rows else "No model has been trained in this run yet.",
        figures or [Figure("none", "", "no test image was scored")],
        _LIMITS[source],
    )


def _accuracy(row: results.Row) -> tuple[str, str]:
    summary = row.summary["accuracy"]
    cell = shown(summary.mean, summary.low, summary.high)
    return cell.value, cell.interval


def _sentence(rows: Sequence[results.Row], source: Source) -> str:
    parts: list[str] = []
    for protocol, words in (("clean", "Without the defects"), ("paper", "With the defects")):
        of = [row for row in rows if row.protocol == protocol]
        if not of:
            continue
        start = words if not parts else words[0].lower() + words[1:]
        if source == "original":
            each = [f"stage {row.stage} {_AGAINST[row.verdict.split()[0]]}" for row in of]
        else:
            each = [
                f"stage {row.stage} is right on {_accuracy(row)[0]} of its test images"
                for row in of
            ]
        parts.append(f"{start} {' and '.join(each)}")
    return "; ".join(parts) + "."
