"""The index page of the whole paper: claims first, then every step with its time and its report.

It imports what evaluates predictions, so that it runs in a process of its own.
"""

import dataclasses
import datetime
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.drawing import pages, shown
from replication.runs import description, device, environment, provenance
from replication.runs.directory import RunDirectory
from replication.whole_paper import claims as claims_table
from replication.whole_paper import plan, work
from replication.whole_paper.claims import Claim, Measured
from tfds_pap import files
from tfds_pap.answer import Answer, Figure

#: Of figures that `replication.measures.names` does not know.
_WORDS = {
    "log_loss": "loss",
    "macro.sensitivity": "recall, mean over classes",
    "macro.precision": "precision, mean over classes",
    "macro.specificity": "specificity, mean over classes",
    "parameters": "parameters",
    "trainable_parameters": "trainable parameters",
    "hidden_layers": "hidden layers of the best point",
    "units": "units of the best point",
    "dropout": "dropout of the best point",
    "learning_rate": "learning rate of the best point",
    "seconds_per_epoch": "seconds an epoch",
}

#: What an exported version was held against, in its log.
_CHECKED = re.compile(r"^Checked: (.+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A step as it stands in the table."""

    step: plan.Step
    state: str
    record: Mapping[str, Any]
    reduced: str
    report: str
    log: str

    @property
    def minutes(self) -> str:
        seconds = self.record.get("seconds")
        return "–" if seconds is None else pages.duration(seconds)

    @property
    def planned(self) -> str:
        seconds = self.record.get("planned_seconds")
        return "–" if seconds is None else pages.duration(seconds, digits=0)

    @property
    def memory(self) -> str:
        peak = self.record.get("peak_memory_mib")
        return "–" if peak is None else pages.memory(peak)


def write(settings: plan.Settings, steps: Sequence[plan.Step], program: str) -> list[str]:
    """Writes `index.html`, `claims.csv` and `times.csv` below the run directory.

    Args:
        settings: What steps have in common.
        steps: Every step, as planned.
        program: The command that was given.

    Returns:
        Lines for the terminal: each claim with its verdict.

    Raises:
        PapError: A file of a valid step cannot be read.
    """
    run = RunDirectory(settings.directory)
    manifest, known = run.manifest(), work.records(run)
    reduced = manifest.get("reduced", {})
    valid = {
        step.name: known[step.name]
        for step in steps
        if work.why_invalid(run.path, step, known) is None
    }
    hindrances = hindering(settings, steps, reduced)
    made = claims_table.Made(
        run.path,
        valid,
        settings.source,
        settings.seed,
        hindrances,
    )
    found = claims_table.claims(made)
    lines = [_line(run.path, step, valid, known, reduced) for step in steps]
    about = _about(program)
    files.write_atomically(
        run.path / "claims.csv",
        pd.DataFrame(claims_table.rows(found)).to_csv(index=False, lineterminator="\n"),
    )
    files.write_atomically(
        run.path / "times.csv",
        pd.DataFrame([{**_time(line, settings), **about} for line in lines]).to_csv(
            index=False, lineterminator="\n"
        ),
    )
    done = [line.step for line in lines if line.state == work.DONE]
    sentences = _sentences(settings, reduced, done)
    page = pages.template("replication.whole_paper", "paper.html.j2").render(
        announcement=provenance.SENTENCES[settings.source],
        sentences=sentences,
        answer=_answer(settings, found, lines, bool(reduced)),
        claims=found,
        cell=_cell,
        duration=pages.duration,
        metric=_metric,
        published_words=_published,
        hindrances=dict.fromkeys(hindrances[s.name] for s in done if s.name in hindrances),
        lines=lines,
        reports={line.step.name: line.report for line in lines},
        checked=_checked(run.path),
        about=about,
        now=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        total=pages.duration(sum(line.record.get("seconds", 0.0) for line in lines)),
    )
    files.write_atomically(run.path / "index.html", page)
    return [*sentences, *_terminal(found)]


def hindering(
    settings: plan.Settings, steps: Sequence[plan.Step], reduced: Mapping[str, str]
) -> dict[str, str]:
    """Returns why figures of a step replicate nothing whatever they are: step -> words.

    Args:
        settings: What steps have in common.
        steps: Every step.
        reduced: Step -> what a budget left of it.
    """
    found = {}
    for step in steps:
        reasons = []
        untrained = [name for name in step.backbones if settings.weights_of(name) == "none"]
        if untrained:
            reasons.append(f"random weights ({', '.join(untrained)})")
        stands_in = settings.backbones[0] != plan.PAPER_BACKBONES[0]
        if stands_in and step.part in ("p5", "p6", "defects", "scan", "export"):
            reasons.append(f"another network than the paper's ({settings.backbones[0]})")
        if step.name in reduced:
            reasons.append(f"a reduced run ({reduced[step.name]})")
        if reasons:
            found[step.name] = "; ".join(reasons)
    return found


def _line(
    directory: Path,
    step: plan.Step,
    valid: Mapping[str, Any],
    known: Mapping[str, Any],
    reduced: Mapping[str, str],
) -> _Line:
    record = known.get(step.name, {})
    state = work.DONE if step.name in valid else record.get("state", work.WAITING)
    if state == work.DONE and step.name not in valid:
        state = work.WAITING
    log = f"{work.LOGS}/{step.name}.txt"
    return _Line(
        step,
        state,
        record,
        reduced.get(step.name, ""),
        step.report and pages.beside(directory, step.report),
        pages.beside(directory, log),
    )


def _about(program: str) -> dict[str, str]:
    """What each row of a table says of its run; folders that lie elsewhere are DIR."""
    return {
        "command": re.sub(r"=(~|/|\.\./)\S*", "=DIR", program),
        "machine": f"{device.processor()}, {os.cpu_count()} cores",
        "commit": environment.git_commit(),
        "date": str(datetime.date.today()),
    }


def _time(line: _Line, settings: plan.Settings) -> dict[str, Any]:
    record = line.record
    return {
        "step": line.step.name,
        "what": line.step.what,
        "state": line.state,
        "images": settings.source,
        **{
            name: record.get(name)
            for name in (
                "seconds",
                "processor_seconds",
                "peak_memory_mib",
                "planned_seconds",
                "tries",
            )
        },
        "reduced": line.reduced,
        "weights": "random" if _untrained(settings, line.step) else "",
    }


def _untrained(settings: plan.Settings, step: plan.Step) -> bool:
    return any(settings.weights_of(name) == "none" for name in step.backbones)


def _sentences(
    settings: plan.Settings, reduced: Mapping[str, str], steps: Sequence[plan.Step]
) -> list[str]:
    said = []
    if reduced:
        said.append(
            "A reduced run is no reproduction: to fit the budget, "
            + "; ".join(f"{name} had {words}" for name, words in reduced.items())
            + "."
        )
    untrained = dict.fromkeys(
        name for step in steps for name in step.backbones if settings.weights_of(name) == "none"
    )
    if untrained:
        said.append(
            f"Random weights, which measure time alone: {', '.join(untrained)}. "
            f"{description.UNTRAINED}"
        )
    return said


def _answer(
    settings: plan.Settings, found: Sequence[Claim], lines: Sequence[_Line], reduced: bool
) -> Answer:
    kinds = [each.kind for claim in found for each in claim.protocols.values() if each.kind]
    of_paper = [claim.protocols["paper"] for claim in found if "paper" in claim.protocols]
    agree = sum(each.kind == "agrees" for each in of_paper)
    judged = sum(each.kind in ("agrees", "differs", "lower", "higher") for each in of_paper)
    done = sum(line.state == work.DONE for line in lines)
    sentence = f"In the paper protocol {agree} of {judged} claims that could be judged agree"
    if settings.source != "original":
        sentence = (
            f"Nobody can tell from these images: of {len(of_paper)} claims that were measured, "
            f"{judged} hold of a network alone, and {agree} of those agree"
        )
    sentence += "." if done == len(lines) else f"; {len(lines) - done} steps are missing."
    if not kinds:
        sentence = "No claim has been measured yet."
    limit = "Intervals that overlap do not prove two models equal, and the clean protocol looks at "
    limit += "its test images once, which no paper here did."
    if reduced:
        limit = "A reduced run is no reproduction. " + limit
    seconds = sum(line.record.get("seconds", 0.0) for line in lines)
    return Answer(
        "Do the papers' claims come back, with and without the defects of their code?",
        sentence,
        [
            Figure(f"{done} of {len(lines)}", "", "steps whose results are there and valid"),
            Figure(f"{agree} of {judged}", "", "judged claims that agree, paper protocol"),
            Figure(pages.duration(seconds), "", "of all steps together"),
        ],
        limit,
    )


def _checked(directory: Path) -> list[str]:
    log = directory / work.LOGS / "export.txt"
    return list(dict.fromkeys(_CHECKED.findall(log.read_text("utf-8")))) if log.is_file() else []


def _metric(claim: Claim) -> str:
    if claim.figure.key.endswith("validation_accuracy"):
        return "validation accuracy"
    if claim.figure.metric.startswith("per_class."):
        _, name, metric = claim.figure.metric.split(".")
        return f"{metric} of {name}"
    return _WORDS.get(claim.figure.metric, claim.figure.metric.replace("_", " "))


def _published(claim: Claim) -> str:
    figure = claim.figure
    if figure.value is None:
        return "'ResNet152 was the best'" if figure.part == "P4" else figure.text
    ends = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    if claim.is_share:
        return " to ".join(f"{100 * end:.4g}" for end in ends) + "\u00a0%"
    return " to ".join(f"{end:,}" if end == int(end) else f"{end:g}" for end in ends)


def _cell(claim: Claim, measured: Measured) -> shown.Shown:
    if isinstance(measured.value, str):
        ends = shown.interval(measured.low, measured.high, percent=True)
        return shown.Shown(measured.value, ends if "no" not in ends else "")
    if claim.is_share:
        return shown.shown(measured.value, measured.low, measured.high)
    if isinstance(measured.value, int):
        return shown.Shown(f"{measured.value:,}")
    digits = "%.3f" if claim.figure.metric == "log_loss" else "%.3g"
    return shown.Shown(digits % measured.value)


def _terminal(found: Sequence[Claim]) -> list[str]:
    lines = []
    for claim in found:
        for protocol, measured in claim.protocols.items():
            cell = _cell(claim, measured)
            lines.append(
                f"{claim.figure.part} {_metric(claim)}, {protocol} protocol: published "
                f"{_published(claim)}, here {cell.value} {cell.interval}: {measured.verdict}"
            )
    return lines
