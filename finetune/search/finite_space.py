"""Counts and lists the points of a search space, where they are finitely many."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine import hyperparameters as hp_types

#: Returns the values of a hyperparameter, None where they are infinitely many.
_Values = Callable[[Any], Sequence[Any] | None]


def count_points(hyperparameters: keras_tuner.HyperParameters) -> int | None:
    """Returns how many points a space has, None where they are infinitely many.

    Points are counted without being listed, so a space of billions takes no longer than a small
    one.

    Args:
        hyperparameters: The space; parents before the hyperparameters that depend on them.

    Example:
        >>> hp = keras_tuner.HyperParameters()
        >>> optimizer = hp.Choice("optimizer", ["sgd", "adam"])
        >>> with hp.conditional_scope("optimizer", ["sgd"]):
        ...     momentum = hp.Choice("momentum", [0.0, 0.5, 0.9])
        >>> count_points(hp)
        4
    """
    return _count(hyperparameters, _drawable)


def finite_points(hyperparameters: keras_tuner.HyperParameters) -> Iterator[dict[str, Any]] | None:
    """Lists every point that a random draw can give, None where they are infinitely many.

    Args:
        hyperparameters: The space; parents before the hyperparameters that depend on them.

    Returns:
        Values by name, of the active hyperparameters only; the last one varies fastest.
    """
    if count_points(hyperparameters) is None:
        return None
    return _points(hyperparameters.space, _drawable, {})


def count_grid_points(hyperparameters: keras_tuner.HyperParameters) -> int:
    """Returns how many points a grid search has.

    Args:
        hyperparameters: The space.
    """
    count = _count(hyperparameters, _gridded)
    assert count is not None, "a grid takes finitely many values of each range"
    return count


def grid_points(hyperparameters: keras_tuner.HyperParameters) -> Iterator[dict[str, Any]]:
    """Lists the points of a grid search, the one of all defaults first.

    As KerasTuner's own grid does, it takes ten values from a range that has no step.

    Args:
        hyperparameters: The space; parents before the hyperparameters that depend on them.

    Returns:
        Values by name, of the active hyperparameters only; the last one varies fastest.
    """
    return _points(hyperparameters.space, _gridded, {})


def is_active(hyperparameter: Any, values: Mapping[str, Any]) -> bool:
    """Tells whether a hyperparameter has a value at a point.

    Args:
        hyperparameter: One of the space.
        values: Of its parents at least.
    """
    return all(condition.is_active(values) for condition in hyperparameter.conditions)


def _drawable(hyperparameter: Any) -> Sequence[Any] | None:
    """Every value that a random draw can give."""
    if isinstance(hyperparameter, hp_types.Float | hp_types.Int) and hyperparameter.step is None:
        least, most = hyperparameter.min_value, hyperparameter.max_value
        if isinstance(hyperparameter, hp_types.Int):
            return range(least, most + 1)
        return (least,) if least == most else None
    return list(dict.fromkeys(_listed(hyperparameter)))


def _gridded(hyperparameter: Any) -> Sequence[Any]:
    """The values of a grid, the default first."""
    return list(dict.fromkeys([hyperparameter.default, *_listed(hyperparameter)]))


def _listed(hyperparameter: Any) -> Sequence[Any]:
    if isinstance(hyperparameter, hp_types.Int):
        # KerasTuner lists steps on a log scale as floats, though it draws them as integers.
        return sorted(int(value) for value in hyperparameter.values)
    if isinstance(hyperparameter, hp_types.Float):
        # Without a step they come from a set, in no order.
        return sorted(hyperparameter.values)
    return list(hyperparameter.values)


def _points(space: Sequence[Any], values_of: _Values, values: dict) -> Iterator[dict[str, Any]]:
    if not space:
        yield values
        return
    first, rest = space[0], space[1:]
    if not is_active(first, values):
        yield from _points(rest, values_of, values)
        return
    for value in values_of(first) or ():
        yield from _points(rest, values_of, {**values, first.name: value})


def _count(hyperparameters: keras_tuner.HyperParameters, values_of: _Values) -> int | None:
    space = hyperparameters.space
    parents = {condition.name for parameter in space for condition in parameter.conditions}
    # Only the values of parents decide what follows: points that share those are counted together.
    counts: dict[tuple, int] = {(): 1}
    for parameter in space:
        following: collections.Counter[tuple] = collections.Counter()
        for state, count in counts.items():
            if not is_active(parameter, dict(state)):
                following[state] += count
                continue
            values = values_of(parameter)
            if values is None:
                return None
            if parameter.name in parents:
                for value in values:
                    following[(*state, (parameter.name, value))] += count
            else:
                following[state] += count * len(values)
        counts = following
    return sum(counts.values())
