"""The whole paper by one command: audit, P1 to P6 in both protocols, fields, a served model.

    python -m replication.paper --manual_dir=DIR --images=original --budget=120
    python -m replication.paper                                    # drawn images, random weights
    python -m replication.paper --manual_dir=DIR --dry_run         # what, how long, with what
    python -m replication.paper --manual_dir=DIR --ablate_defects  # and how large each defect is

Every step is a command of this project in a process of its own. One whose results are there and
valid is skipped, any may be killed, and the same command goes on where it was.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from replication.flags import device as device_flags
from replication.flags import engine as engine_flags
from replication.flags import images as image_flags
from replication.flags import shared
from replication.runs.directory import RunDirectory
from replication.whole_paper import budget, plan, work
from tfds_pap import commands, path_flags, redaction
from tfds_pap.errors import PapError

_MANUAL_DIR = shared.manual_dir("DB_3 and DB_4, and perhaps whole fields in fields/")
_DATA_DIR = shared.data_dir()
_RUN_DIR = shared.run_dir(
    "Where everything is written (default: runs/paper-original, or runs/paper-phantom)."
)
_WEIGHTS = flags.DEFINE_list(
    "weights",
    None,
    "imagenet (default with --manual_dir; Keras's download and cache), none (default for drawn "
    "images: random weights, which measure time alone), or the path of a file or directory of .h5 "
    "or .keras files; NAME=one of these sets it for one backbone: none,mobilenetv2=DIR.",
)
_BACKBONES = flags.DEFINE_list(
    "backbones",
    None,
    "Networks that P4 compares, the one that P5 and P6 fine-tune first (default: the papers', "
    f"{','.join(plan.PAPER_BACKBONES)}; for drawn images {','.join(plan.DRAWN_BACKBONES)}).",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of every model but the heads of P4, which have three (default: 0).", lower_bound=0
)
_BUDGET = flags.DEFINE_integer(
    "budget",
    None,
    "Minutes that the steps may take: fewer epochs, trials and backbones where all do not fit, "
    "which every page says (default: none, everything that the authors did).",
    lower_bound=1,
)
_ONLY = flags.DEFINE_list(
    "only", [], "Steps to run, such as p2,p4 or p4-clean (default: all of them)."
)
_SKIP = flags.DEFINE_list("skip", [], "Steps to leave out (default: none).")
_ABLATE_DEFECTS = flags.DEFINE_boolean(
    "ablate_defects",
    False,
    "Measure the size of each defect of the published code as well: the step defects, four more "
    "trainings of P2's network and some heads (default: not).",
)
_DRY_RUN = shared.dry_run("steps, their commands")

flags.adopt_module_key_flags(device_flags)
flags.adopt_module_key_flags(engine_flags)
flags.adopt_module_key_flags(image_flags)


def main(argv: list[str]) -> None:
    """Plans the steps, runs those that are missing, and writes the page of claims."""
    commands.no_arguments(argv)
    settings = _settings()
    every = plan.steps(settings)
    only, skip = plan.choose(_ONLY.value, every, "only"), plan.choose(_SKIP.value, every, "skip")
    wanted = [step.name for step in plan.selected(every, only, skip)]
    if not wanted:
        raise app.UsageError("--only and --skip leave no step")
    identity = {**_identity(settings), **plan.fingerprint(settings.manual_dir)}
    if _DRY_RUN.value:
        limits, costs = _planned(settings, wanted, {})
        print(*_plan_lines(settings, wanted, limits, costs), sep="\n")
        print(f"--dry_run: nothing was written; without it results go to {settings.directory}")
        return
    run = RunDirectory.open(settings.directory, identity)
    run.update_manifest(command=_program(), source=settings.source)
    limits, costs = _limits(run, settings, wanted)
    every = plan.steps(settings, limits)
    print(*_plan_lines(settings, _missing(run, every, wanted), limits, costs), sep="\n", flush=True)
    lines: list[str] = []
    for number, step in enumerate(plan.selected(every, wanted, ()), start=1):
        # The page is there after the first step, and follows the others.
        if work.make_valid(run, step, every, f"[{number} of {len(wanted)}]", costs) or not lines:
            lines = work.apart(_write_page, settings, every, _program())
    print(*lines, sep="\n")
    known = work.records(run)
    print(f"\nTable of claims and every report: {run.path / 'index.html'}")
    failed = [name for name in wanted if known.get(name, {}).get("state") != work.DONE]
    if failed:
        raise PapError(
            f"{len(failed)} of {len(wanted)} steps are not done:\n"
            + "\n".join(f"  {name}: {known.get(name, {}).get('reason', '')}" for name in failed)
        )


def _settings() -> plan.Settings:
    drawn = _MANUAL_DIR.value is None
    images = image_flags.declared(_MANUAL_DIR.value)
    weights = tuple(_WEIGHTS.value or (["none"] if drawn else ["imagenet"]))
    for entry in weights:
        place = entry.rpartition("=")[2]
        if not path_flags.is_word_or_path(place, shared.WEIGHTS):
            raise app.UsageError(f"--weights={entry}: {shared.NO_WEIGHTS}")
    default = plan.DRAWN_BACKBONES if drawn else plan.PAPER_BACKBONES
    return plan.Settings(
        Path(_RUN_DIR.value or f"runs/paper-{'phantom' if drawn else 'original'}"),
        _MANUAL_DIR.value,
        images,
        _DATA_DIR.value,
        weights,
        tuple(dict.fromkeys(name.lower() for name in _BACKBONES.value or default)),
        _SEED.value,
        device_flags.given(),
        ablate_defects=_ABLATE_DEFECTS.value,
        engine=engine_flags.given(),
    )


def _identity(settings: plan.Settings) -> dict[str, Any]:
    """Everything that results depend on, but for the images."""
    return {
        "source": "original" if settings.manual_dir else "phantom",
        "images": settings.images,
        "weights": list(settings.weights),
        "backbones": list(settings.backbones),
        "seed": settings.seed,
        "budget": _BUDGET.value,
        "device flags": list(settings.device),
        # Directories of before there was another engine stay what they were.
        **({} if settings.engine == "auto" else {"engine": settings.engine}),
    }


def _program() -> str:
    return redaction.redacted(shlex.join(["python", "-m", "replication.paper", *sys.argv[1:]]))


def _limits(
    run: RunDirectory, settings: plan.Settings, wanted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, budget.Cost]]:
    """Plans what was not planned before: a step keeps its epochs however often it is begun."""
    manifest = run.manifest()
    limits = dict(manifest.get("limits", {}))
    costs = {name: budget.Cost(**cost) for name, cost in manifest.get("costs", {}).items()}
    new = [name for name in wanted if name not in costs]
    if new:
        more, measured = _planned(settings, new, costs, limits)
        # A part may have been planned by half; its two protocols have one limit.
        limits, costs = {**more, **limits}, {**costs, **measured}
        run.update_manifest(
            limits=limits,
            costs={name: vars(cost) for name, cost in costs.items()},
            reduced=budget.reductions(limits, costs),
        )
    return limits, costs


def _planned(
    settings: plan.Settings,
    names: Sequence[str],
    before: Mapping[str, budget.Cost],
    limits: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, budget.Cost]]:
    """Measures steps, and shortens them where there is a budget."""
    print(f"Measuring how long {len(names)} steps take on this machine ...", flush=True)
    costs = work.apart(_measure, settings, list(names), device_flags.values())
    if _BUDGET.value is None:
        return {}, costs
    taken = sum(cost.seconds(budget.limit_of(limits or {}, name)) for name, cost in before.items())
    return budget.shorten(costs, 60.0 * _BUDGET.value - taken), costs


def _missing(run: RunDirectory, every: Sequence[plan.Step], wanted: Sequence[str]) -> list[str]:
    known = work.records(run)
    return [
        step.name
        for step in every
        if step.name in wanted and work.why_invalid(run.path, step, known) is not None
    ]


def _plan_lines(
    settings: plan.Settings,
    names: Sequence[str],
    limits: Mapping[str, Any],
    costs: Mapping[str, budget.Cost],
) -> list[str]:
    from replication.drawing import pages

    said = budget.reductions(limits, costs)
    lines, total = [], 0.0
    for step in plan.steps(settings, limits):
        if step.name in names:
            cost = costs[step.name]
            seconds = cost.seconds(budget.limit_of(limits, step.name))
            total += seconds
            words = "" if cost.measured else " (assumed)"
            words += f"; reduced to {said[step.name]}" if step.name in said else ""
            about = pages.duration(seconds, digits=0)
            lines.append(f"{step.name:<9} about {about}{words}: {step.what}")
            if _DRY_RUN.value:
                lines.append(f"          {step.command}")
    if not lines:
        return ["Plan: every step is there and valid"]
    head = [f"Plan: {len(names)} steps, about {pages.duration(total, digits=0)} on this machine"]
    if _BUDGET.value and total > 60 * _BUDGET.value:
        head.append(f"That is more than --budget={_BUDGET.value}: the least that steps can do")
    if said:
        head.append("A reduced run is no reproduction; --budget of more minutes leaves out less")
    return [*head, *lines]


def _measure(
    settings: plan.Settings, names: Sequence[str], device: tuple[str, str, bool]
) -> dict[str, budget.Cost]:
    commands.prepare_tensorflow()
    from replication.whole_paper import estimate

    return estimate.measure(settings, names, device)


def _write_page(settings: plan.Settings, steps: Sequence[plan.Step], program: str) -> list[str]:
    commands.prepare_tensorflow()
    from replication.whole_paper import page

    return page.write(settings, steps, program)


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
