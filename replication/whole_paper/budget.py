"""What the steps of the whole paper cost, and what a budget leaves of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: What of a step a budget shortens, and how a page says what was done instead.
_SHORTENED = {
    "p1-20": "epochs at most",
    "p1-50": "epochs at most",
    "p2": "epochs at most",
    "p3": "epochs at most",
    "p4": "backbones",
    "p5": "trials",
    "defects": "epochs at most",
}
#: A budget leaves this share of epochs and trials at least.
_LEAST = 0.05


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a step takes in full.

    Attributes:
        fixed: Seconds whatever its epochs or trials.
        scaled: Seconds of all of them.
        amount: How many epochs or trials; 0 where none can be left out.
        by: Of P4, seconds of each backbone, which are part of `fixed`.
        measured: Whether a part of it was measured on this machine; else all of it is assumed.
    """

    fixed: float
    scaled: float = 0.0
    amount: int = 0
    by: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measured: bool = True

    def seconds(self, limit: Any = None) -> float:
        """Seconds with a limit of `shorten`."""
        if isinstance(limit, int) and self.amount:
            return self.fixed + self.scaled * limit / self.amount
        if limit and self.by:
            return self.fixed - sum(s for name, s in self.by.items() if name not in limit)
        return self.fixed + self.scaled


def limit_of(limits: Mapping[str, Any], name: str) -> Any:
    """Returns the limit of a step: its own, or that of its part."""
    return limits.get(name, limits.get(name.partition("-")[0]))


def shorten(costs: Mapping[str, Cost], seconds: float) -> dict[str, Any]:
    """Finds what has to be left out for steps to fit a budget.

    Every step may train for as long as every other: short ones lose nothing, long ones epochs or
    trials, of which a twentieth stays. Where that is still too long, P4 loses backbones, the
    costliest first, until two are left; the first one stays.

    Args:
        costs: Of each step.
        seconds: Of the budget.

    Returns:
        Step or part -> epochs, trials, or backbones that stay; empty where all fits.
    """
    limits: dict[str, Any] = {}
    fixed = sum(cost.fixed for cost in costs.values())
    scaled = sum(cost.scaled for cost in costs.values())
    if fixed + scaled <= seconds:
        return {}
    compared = [cost for name, cost in costs.items() if name.startswith("p4") and cost.by]
    stay = list(compared[0].by) if compared else []
    for name in sorted(stay[1:], key=lambda each: -compared[0].by[each]):
        if fixed + _LEAST * scaled <= seconds or len(stay) <= 2:
            break
        stay.remove(name)
        fixed -= sum(cost.by[name] for cost in compared)
        limits["p4"] = stay
    longest = _longest([cost.scaled for cost in costs.values()], seconds - fixed)
    for name, cost in costs.items():
        if cost.amount and cost.scaled > longest:
            key = name if name in _SHORTENED else name.partition("-")[0]
            kept = max(1, math.floor(max(_LEAST, longest / cost.scaled) * cost.amount))
            limits[key] = min(kept, limits.get(key, kept))
    return limits


def _longest(scaled: Sequence[float], available: float) -> float:
    """Returns the seconds that each may train at most for all to fit, by bisection."""
    low, high = 0.0, max(scaled, default=0.0)
    for _ in range(50):
        middle = (low + high) / 2
        total = sum(max(min(each, middle), _LEAST * each) for each in scaled)
        low, high = (middle, high) if total <= available else (low, middle)
    return low


def reductions(limits: Mapping[str, Any], costs: Mapping[str, Cost]) -> dict[str, str]:
    """Says of each step what was left out: step -> '12 of 100 epochs at most'."""
    said = {}
    for name, cost in costs.items():
        limit = limit_of(limits, name)
        unit = _SHORTENED.get(name) or _SHORTENED.get(name.partition("-")[0], "")
        if isinstance(limit, int):
            said[name] = f"{limit} of {cost.amount} {unit}"
        elif limit:
            said[name] = f"{len(limit)} of {len(cost.by)} {unit}"
    return said
