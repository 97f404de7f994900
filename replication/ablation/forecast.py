"""What measuring the sizes of the defects would take: fits, epochs, minutes, disk."""

from collections.abc import Sequence
from pathlib import Path

from replication.ablation import steps
from replication.learning import knobs
from replication.runs import dry_run
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory


def forecast(
    plan: steps.Plan, path: Path, counted: dry_run.Images, policy: DevicePolicy
) -> tuple[list[str], dict[str, float]]:
    """Forecasts what is missing; nothing is written.

    Args:
        plan: What is measured.
        path: Of the run directory, which need not exist.
        counted: The images.
        policy: Where and how to compute.

    Returns:
        Lines, and what would be written in bytes.
    """
    lines: list[str] = []
    parts: dict[str, float] = {"images": counted.bytes_to_prepare}
    if plan.wants(*steps.OF_NETWORK):
        wanted = [steps.WHOLE, *([steps.WITHOUT_D1] if plan.wants("D1") else [])]
        missing = [
            (seed, 2, name)
            for seed in plan.seeds
            for name in wanted
            if not _finished(path / name, seed)
        ]
        planned = {(name, 2): plan.networks[name] for name in wanted}
        of_networks, written = dry_run.training(
            planned, missing, {2: counted}, policy=policy, ending=False
        )
        lines += [f"P2's network: {of_networks[0].removeprefix('Plan: ')}"]
        parts |= {"models": written["models"]}
    if plan.wants(*steps.OF_HEADS):
        fits = len(plan.seeds) * sum(_heads(plan))
        fed = {name: plan.specs[name] for name in _fed(plan)}
        of_heads, written = dry_run.comparison(
            fed,
            counted.index,
            # Of each of the feeds, as the comparison counts them.
            fits=-(-fits // len(fed)),
            recipe=knobs.HeadRecipe(),
            protocol="paper",
            policy=policy,
        )
        heads = of_heads[0].removeprefix("Plan: ").replace("backbone", "feed of the backbone", 1)
        lines += [f"Heads: {heads}"]
        parts |= {"features": written["features"], "heads": written["fits"]}
    return lines or ["Nothing is to be trained"], parts


def _finished(path: Path, seed: int) -> bool:
    return (RunDirectory(path).fit_directory(2, "paper", seed) / "fit.json").exists()


def _fed(plan: steps.Plan) -> Sequence[str]:
    return ("bgr", "own") if plan.wants("D1") else ("bgr",)


def _heads(plan: steps.Plan) -> list[int]:
    """Heads of a seed: published cut of each feed, points of P5, and three cuts of D6."""
    return [
        len(_fed(plan)) * plan.wants("D1", "D5"),
        len(plan.points) * plan.wants("D3"),
        # "let_in" trains two heads a fold.
        4 * plan.folds * plan.wants("D6"),
    ]
