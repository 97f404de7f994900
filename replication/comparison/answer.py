"""What a comparison's page opens with."""

from replication.comparison.ranking import Comparison
from replication.drawing.shown import points, points_interval, shown
from replication.measures.evaluation import SeedSummary
from tfds_pap.answer import Answer, Figure


def answer(result: Comparison) -> Answer:
    """Sums a comparison up.

    Args:
        result: Finished.
    """
    best = next(entry for entry in result.ranked if entry.candidate.name == result.winner)
    sizes = [one for one in result.leaks if one.name == result.winner]
    accuracy = _figure(best.summary["accuracy"], f"accuracy of {result.winner}, {result.design}")
    alike = [name for names in result.sets if result.winner in names for name in names]
    others = [entry.candidate.name for entry in result.ranked if entry is not best]
    undecided = [name for name in others if name in alike]
    if not others:
        which = f"{result.winner} alone was scored"
    elif undecided:
        which = f"{result.winner} was chosen, and cannot be told apart from {_listed(undecided)}"
    else:
        which = f"{result.winner} was chosen, and is told apart from its neighbours in the ranking"
    limit = "The backbones are frozen: fine-tuned they may rank otherwise. Not told apart is not "
    limit += "equal. The figures hold for these images alone."
    if not sizes:
        return Answer("Which frozen backbone is best?", f"{which}.", [accuracy], limit)
    size, unit = sizes[0], result.unit
    figures = [_figure(size.by_image["accuracy"], "accuracy, folds cut by image"), accuracy]
    parts = {"the cut by image adds": size.difference["accuracy"]}
    if size.control:
        parts = {
            "leak": size.control.leak["accuracy"],
            f"scarcity of {unit}s": size.control.scarcity["accuracy"],
        }
    for words, part in parts.items():
        unsure = "" if part.told_from_zero else ", not told apart from 0"
        value = f"{points(part.value)} points"
        figures.append(Figure(value, points_interval(part.low, part.high), words + unsure))
    by_image, by_group = figures[0].value, figures[1].value
    sentence = f"{result.winner} names {by_image} rightly where other images of the same {unit} "
    sentence += f"may train, {by_group} where they may not: only the second says what to expect of "
    sentence += f"the next {unit}."
    question = f"How much of the accuracy is leak between images of one {unit}"
    question += ", and which backbone is best?" if others else "?"
    return Answer(question, sentence, figures, f"{which}. {limit}" if others else limit)


def _figure(summary: SeedSummary, words: str) -> Figure:
    cell = shown(summary.mean, summary.low, summary.high)
    return Figure(cell.value, cell.interval, words)


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
