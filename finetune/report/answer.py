"""What a search's page opens with."""

from finetune.report.figure_parts import named
from finetune.report.findings import Findings
from finetune.report.sentences import beside_sensitivity, gap, interval, score
from finetune.search.trials import Search, described
from tfds_pap.answer import Answer, Figure

_QUESTION = "Which configuration is best, and can it be told from the paper's choice?"

_LIMITS = {
    "paper": "The images that were scored were trained on, as in P5: the score says how well a "
    "head remembers, and is not one to report.",
    "clean": "The tune images chose the configuration, so its score on them flatters; the test "
    "images were not looked at. Not told apart is not equal.",
}


def answer(search: Search, outcome: Findings) -> Answer:
    """Sums a search up.

    Args:
        search: Finished or not.
        outcome: What follows from its trials.
    """
    question = _QUESTION if search.paper_values else "Which configuration is best?"
    limit, best = _LIMITS[search.protocol], search.best
    if best is None:
        figures = [Figure("none", "", f"{outcome.words} of the best found")]
        return Answer(question, "No trial has a score yet.", figures, limit)
    words = f"{outcome.words} of the best found"
    if outcome.metric == "hsil_plus_sensitivity":
        words += f", {beside_sensitivity(search, best)}"
    figures = [Figure(score(search, best.score), "no interval: no predictions were kept", words)]
    if outcome.first:
        ends = interval(search, outcome.first.low, outcome.first.high)
        first = ", first training" if search.executions > 1 else ""
        on = f"{words} on {outcome.over}{first}"
        figures = [Figure(score(search, outcome.first.value), ends, on)]
    sentence = f"Best found: {described(best.values)}"
    beside = outcome.beside
    if beside and beside.paper is best:
        sentence += ", which is the paper's choice"
    elif beside and beside.differences:
        told = "is told apart" if beside.told_apart else "cannot be told apart"
        sentence += f"; on these images it {told} from the paper's choice"
        for metric, difference in beside.differences.items():
            value, _, ends = gap(metric, difference).partition(" ")
            figures.append(Figure(value, ends, f"best minus paper, {named(search, metric).words}"))
    elif search.paper_values:
        sentence += "; the paper's choice has no score to set beside it"
    return Answer(question, f"{sentence}.", figures, limit)
