"""What the papers claim, beside what was measured here in both protocols, with a verdict each.

Everything is read from files that the steps left: `metrics.json`, `fit.json`, `predictions.csv`,
`ranking.csv`, `pairs.csv`, `best.json`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.measures import evaluation, published
from replication.measures.published import Published, Source
from replication.runs import results
from replication.runs.directory import RunDirectory
from replication.whole_paper.plan import PAPER_BACKBONES, PROTOCOLS
from tfds_pap import files
from tfds_pap.errors import PapError

#: Claims that hold of a network whatever it was trained on.
_OF_NETWORKS = ("parameters", "trainable_parameters")
#: Shares of 1, which are shown in percent.
_SHARES = ("accuracy", "macro.sensitivity", "macro.precision", "macro.specificity")
#: The network that P4 calls the best.
_BEST = PAPER_BACKBONES[0]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A claim's figure in one protocol.

    Attributes:
        value: The figure, or words for what is no number; NaN where nothing was measured.
        low: Lower end of its 95 % interval; NaN for none.
        high: Upper end.
        method: How the interval was made, or why there is none.
        verdict: Beside what the paper says, in words; "" where nothing was measured.
        step: That measured it.
        seconds: That the step took; None if unknown.
    """

    value: float | str
    low: float
    high: float
    method: str
    verdict: str
    step: str
    seconds: float | None

    @property
    def kind(self) -> str:
        """The verdict in a word: agrees, differs, lower, higher, no or not; "" for none."""
        return self.verdict.split(" ", 1)[0].rstrip(":")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the table.

    Attributes:
        figure: What the paper says, and where.
        protocols: Protocol -> what was measured; without those that were not.
    """

    figure: Published
    protocols: Mapping[str, Measured]

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return self.figure.metric in _SHARES or self.figure.metric.startswith("per_class.")


@dataclasses.dataclass(frozen=True)
class Made:
    """What steps left.

    Attributes:
        directory: Of the whole paper.
        steps: Records of the steps whose results are valid.
        source: Whose images these are.
        seed: Of the models.
        hindrances: Step -> why its figures replicate nothing, whatever they are: a part of the
            epochs, random weights, another network.
    """

    directory: Path
    steps: Mapping[str, Mapping[str, Any]]
    source: Source
    seed: int = 0
    hindrances: Mapping[str, str] = dataclasses.field(default_factory=dict)


def claims(made: Made) -> list[Claim]:
    """Returns every claim in the order of the parts.

    Args:
        made: What steps left.

    Raises:
        PapError: A file of a valid step cannot be read.
    """
    return [
        Claim(
            figure,
            {
                protocol: measured
                for protocol in PROTOCOLS
                if (measured := _measured(figure, protocol, made)) is not None
            },
        )
        for figure in _figures()
    ]


def _figures() -> Iterable[Published]:
    for figure in published.PUBLISHED:
        if figure.key == "P1.accuracy":
            # The first network has no figure of its own.
            yield dataclasses.replace(
                figure,
                key="P1.accuracy_20",
                value=None,
                interval=None,
                what="stage 1 CNN of 20 x 20 px, on DB_3/validation",
                note="the published 0.992 is of the 50x50 variant",
            )
        yield figure


def _step(figure: Published, protocol: str) -> str:
    if figure.part == "P1":
        return "p1-50" if figure.key == "P1.accuracy" else "p1-20"
    if figure.part in ("P2", "P3"):
        return figure.part.lower()
    return f"{figure.part.lower()}-{protocol}"


def _measured(figure: Published, protocol: str, made: Made) -> Measured | None:
    step = _step(figure, protocol)
    if step not in made.steps:
        return None
    if figure.part == "P4":
        value, low, high, method, verdict = _comparison(figure, made, step)
    else:
        value, low, high, method = _read(figure, protocol, made, step)
        verdict = _verdict(figure, value, low, high, made, step)
    if isinstance(value, float) and math.isnan(value):
        return None
    return Measured(value, low, high, method, verdict, step, made.steps[step].get("seconds"))


def _read(
    figure: Published, protocol: str, made: Made, step: str
) -> tuple[float | str, float, float, str]:
    """The figure in the files of its step: value, interval, and how that was made."""
    if figure.part == "P5" and figure.metric != "seconds_per_epoch":
        best = files.read_json(made.directory / step / "best.json")
        units = best["hidden_units"]
        values = {
            "hidden_layers": len(units),
            "units": units[0] if len(units) == 1 else "-".join(map(str, units)),
        }
        value = values.get(figure.metric, best.get(figure.metric))
        return value, math.nan, math.nan, "no interval: a choice"
    if figure.part == "P5":
        trials = pd.read_csv(made.directory / step / "search.csv")
        seconds = float(trials["seconds"].sum() / trials["epochs"].sum())
        return seconds, math.nan, math.nan, "no interval; on stored features"
    fit = results.choose_fits(RunDirectory(made.directory / step), protocol, made.seed)[
        figure.stage
    ]
    if figure.metric == "seconds_per_epoch":
        seconds = fit.info["seconds"] / fit.info["epochs_run"]
        return seconds, math.nan, math.nan, "no interval; on stored features"
    if figure.metric in _OF_NETWORKS:
        return fit.info.get(figure.metric, math.nan), math.nan, math.nan, "no interval: a count"
    if figure.key == "P2.validation_accuracy":
        tune = evaluation.evaluate(fit.predictions.select("tune"), resamples=2)["accuracy"]
        return tune.value, tune.low, tune.high, tune.method
    found: Any = files.read_json(fit.directory / "metrics.json")
    for level in figure.metric.split("."):
        found = found[level]
    ends = [math.nan if found[end] is None else found[end] for end in ("low", "high")]
    return found["value"], *ends, found["method"]


def _verdict(
    figure: Published, value: float | str, low: float, high: float, made: Made, step: str
) -> str:
    """In words that begin as those of `published.verdict`, or with 'differs'."""
    why = made.hindrances.get(step, "")
    if figure.metric in _OF_NETWORKS:
        if "another network" in why:
            return f"no verdict: {why}"
        same = value == figure.value
        return "agrees (the same number)" if same else f"differs (published {figure.text})"
    if figure.metric == "seconds_per_epoch":
        return "no verdict: another machine, and stored features"
    if made.source == "original" and why:
        return f"no verdict: {why}"
    if figure.part == "P5":
        if made.source != "original":
            return _strange(figure, made.source, why)
        same = isinstance(value, int | float) and math.isclose(value, float(figure.text))
        return "agrees (the same choice)" if same else f"differs (published {figure.text})"
    words = published.verdict(figure, low, high, source=made.source)
    return f"{words}; {why}" if why else words


def _strange(figure: Published, source: Source, why: str) -> str:
    """What `published.verdict` says of images that are not the papers'."""
    words = published.verdict(figure, math.nan, math.nan, source=source).partition(" (")[0]
    return f"{words}; {why}" if why else words


def _comparison(
    figure: Published, made: Made, step: str
) -> tuple[float | str, float, float, str, str]:
    """P4 publishes no figure, but says which network was the best."""
    table = pd.read_csv(made.directory / step / "ranking.csv")
    accuracy = table[table["metric"] == "accuracy"].sort_values("rank")
    winner = accuracy.iloc[0]
    own = accuracy[accuracy["backbone"] == _BEST]
    shown = winner if own.empty else own.iloc[0]
    words = f"{shown['backbone']} {100 * shown['mean']:.1f} %, rank {shown['rank']} of "
    words += str(len(accuracy))
    if shown["backbone"] != winner["backbone"]:
        words += f"; first: {winner['backbone']} {100 * winner['mean']:.1f} %"
    ends = float(shown["low"]), float(shown["high"]), str(shown["method"])
    why = made.hindrances.get(step, "")
    if made.source != "original":
        return words, *ends, _strange(figure, made.source, why)
    if own.empty:
        return words, *ends, "no verdict: ResNet152 was not compared"
    if why:
        return words, *ends, f"no verdict: {why}"
    if shown["backbone"] == winner["backbone"]:
        return words, *ends, "agrees (it has the highest mean)"
    pairs = pd.read_csv(made.directory / step / "pairs.csv")
    both = {_BEST, winner["backbone"]}
    mine = pairs[[{a, b} == both for a, b in zip(pairs["first"], pairs["second"], strict=True)]]
    if mine.empty:
        raise PapError(f"{made.directory / step / 'pairs.csv'}: expected the pair {sorted(both)}")
    if bool(mine.iloc[0]["told_apart"]):
        return words, *ends, f"differs ({winner['backbone']} is better, and told apart)"
    return words, *ends, f"agrees (not told apart from {winner['backbone']})"


def rows(found: Sequence[Claim]) -> list[dict[str, Any]]:
    """Returns the table as a CSV holds it: a row a claim and protocol.

    Args:
        found: From `claims`.
    """
    return [
        {
            "claim": claim.figure.key,
            "what": claim.figure.what,
            "metric": claim.figure.metric,
            "published": claim.figure.text,
            "published_low": claim.figure.interval[0] if claim.figure.interval else None,
            "published_high": claim.figure.interval[1] if claim.figure.interval else None,
            "where": claim.figure.source,
            "note": claim.figure.note,
            "protocol": protocol,
            **dataclasses.asdict(measured),
        }
        for claim in found
        for protocol, measured in claim.protocols.items()
    ]
