"""Checks of flag values that several commands share; imports nothing slow."""

from collections.abc import Sequence

from absl import app


def seeds(values: Sequence[str]) -> tuple[int, ...]:
    """Returns the seeds of `--seeds`, each once, in the order given.

    Args:
        values: Texts, as the flag holds them.

    Raises:
        app.UsageError: If one is no whole number from 0, or there is none.
    """
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise app.UsageError(
            f"--seeds={','.join(values)}: expected whole numbers from 0, such as 0,1,2"
        )
    return tuple(dict.fromkeys(numbers))
