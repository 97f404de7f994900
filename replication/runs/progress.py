"""How long a run takes: estimated from a short measurement, corrected as its fits end.

One line serves the whole run: `fit 3 of 4, about 40 s left`.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import tqdm

from replication.drawing import pages
from replication.learning import models, training
from replication.runs.device import DevicePolicy

#: A convolution like those of stage 2, whose speed stands for that of a step: images, side,
#: channels and filters.
_SAMPLE = (8, 94, 40, 32)
#: Rate of a whole training step, in GFLOP of its convolutions a second, as a share of the sample's.
_STEP_SHARE = 0.65
#: A fit's images, audit, tracing and scoring, in GFLOP of the sample: they too take longer where
#: the processor is slower.
_FIT_WORK = 1300.0
#: Reading fields and writing the report, in the same unit.
_END_WORK = 1800.0
#: The plan that README states for two cores, in seconds; beyond it the plan says so.
PROMISED_SECONDS = 240.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """One model to train.

    Attributes:
        label: Stage, protocol and seed in words.
        epochs: At most.
        work: Of its training, in GFLOP of convolutions and dense layers; None where the network is
            not known before it is built (frozen backbones).
    """

    label: str
    epochs: int
    work: float | None

    @classmethod
    def of(cls, label: str, recipe: training.Recipe, images: int) -> "Fit":
        """Returns the work of a recipe.

        Args:
            label: Stage, protocol and seed in words.
            recipe: How the model is trained.
            images: Images that an epoch trains on.
        """
        if recipe.features is not None:
            return cls(label, recipe.epochs, None)
        model = recipe.build(recipe.size)
        return cls(label, recipe.epochs, models.training_gflops(model) * images * recipe.epochs)


def measure_speed(policy: DevicePolicy) -> float | None:
    """Measures for a moment what this processor computes, in GFLOP a second.

    Args:
        policy: The device policy in force.

    Returns:
        The better of several tries; None on a GPU or another backend, where the plan of README
        does not apply.
    """
    if not policy.device.startswith("CPU") or keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    count, side, channels, filters = _SAMPLE
    images = tf.random.stateless_normal((count, side, side, channels), (0, 0))
    kernel = tf.random.stateless_normal((3, 3, channels, filters), (0, 1))

    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            total = tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "VALID"))
        return tape.gradient(total, [images, kernel])

    step()
    work = 3 * 2 * count * (side - 2) ** 2 * 9 * channels * filters / 1e9
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        step()[1].numpy()
        seconds.append(time.perf_counter() - start)
    return work / min(seconds)


class RunProgress:
    """Shows which fit is at work, and about how long the whole run still takes.

    Args:
        fits: Those that are not finished, in order.
        speed: From `measure_speed`.
        ending: Whether fields are read at the end.
    """

    def __init__(self, fits: Sequence[Fit], speed: float | None, *, ending: bool = True) -> None:
        self._fits = list(fits)
        works = [fit.work for fit in fits if fit.work is not None]
        #: Seconds of each fit, as planned; None where they cannot be told.
        self._expected: list[float] | None = None
        self._end = 0.0
        if speed is not None and len(works) == len(fits):
            self._expected = [(work / _STEP_SHARE + _FIT_WORK) / speed for work in works]
            self._end = _END_WORK / speed if ending else 0.0
        self._took: list[float] = []
        self._number = 0
        self._start = time.perf_counter()
        self._line: _Line | None = None

    @property
    def seconds(self) -> float | None:
        """Of the whole run, as planned; None where it cannot be told."""
        return None if self._expected is None else sum(self._expected) + self._end

    def plan(self) -> list[str]:
        """Returns what is said before the start; nothing where all fits are finished."""
        if not self._fits:
            return []
        count = f"{len(self._fits)} fit{'' if len(self._fits) == 1 else 's'}"
        epochs = sum(fit.epochs for fit in self._fits)
        if self.seconds is None:
            return [f"Plan: {count}, at most {epochs} epochs"]
        about = _duration(self.seconds)
        lines = [f"Plan: {count}, at most {epochs} epochs, about {about} on this processor"]
        if self.seconds > PROMISED_SECONDS:
            lines.append(
                f"That is more than the {_duration(PROMISED_SECONDS)} of a run on drawn images on "
                "two cores with AVX2; Ctrl-C ends it, and the same command goes on where it was."
            )
        return lines

    def callback(self, epochs: int, images: int) -> keras.callbacks.Callback:
        """Returns what shows the next fit while it trains.

        Args:
            epochs: At most.
            images: Images that an epoch trains on.
        """
        self._number += 1
        self._start = time.perf_counter()
        self._line = _Line(self, epochs, images)
        return self._line

    def finished(self) -> None:
        """Takes in that the fit at work has ended, scored and saved."""
        self._took.append(time.perf_counter() - self._start)

    @property
    def is_under_way(self) -> bool:
        """Whether fits are missing still."""
        return len(self._took) < len(self._fits)

    def place(self) -> str:
        """Returns where the run stands: which fit of how many."""
        return f"fit {min(self._number, len(self._fits))} of {len(self._fits)}"

    def left(self, own: float | None = None) -> str:
        """Returns about how long the run still takes, in words; "" where it cannot be told.

        Args:
            own: Seconds that the fit at work still trains; None where it has not shown yet.
        """
        ended = len(self._took)
        at_work = self._number - ended
        if self._expected is None:
            if not self._took or (at_work and own is None):
                return ""
            rest = self._took[-1] * (len(self._fits) - self._number)
        else:
            # How much slower or faster than planned this run has been.
            planned = sum(self._expected[:ended])
            correction = sum(self._took) / planned if planned else 1.0
            if at_work and own is None:
                own = correction * self._expected[ended]
            rest = correction * (sum(self._expected[self._number :]) + self._end)
        return f"about {_duration(rest + (own or 0.0))} left"

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the line, also where Ctrl-C left it open."""
        if self._line is not None:
            self._line.close()


class _Line(keras.callbacks.Callback):
    """The progress line of the fit at work."""

    def __init__(self, progress: RunProgress, epochs: int, images: int) -> None:
        super().__init__()
        self._progress = progress
        self._epochs = epochs
        self._images = images
        self._bar: Any = None
        self._epoch_start = 0.0
        self._seconds: list[float] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the line."""
        self._bar = tqdm.tqdm(
            desc=self._words(None),
            total=self._epochs,
            # A file or a pipe gets a line a quarter of a minute, a terminal one that moves.
            mininterval=0.1 if sys.stderr.isatty() else 15.0,
            bar_format="{desc} {bar:12} {postfix}",
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._epoch_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the epoch's figures and what is left of the run."""
        self._seconds.append(time.perf_counter() - self._epoch_start)
        # The first epoch traces the step as well.
        usual = statistics.median(self._seconds[1:] or self._seconds)
        shown = {k: f"{v:.3f}" for k, v in (logs or {}).items() if k != "learning_rate"}
        self._bar.set_postfix(
            {"epoch": epoch + 1, **shown, "images/s": f"{self._images / self._seconds[-1]:.0f}"},
            refresh=False,
        )
        self._bar.set_description_str(
            self._words(usual * (self._epochs - epoch - 1)), refresh=False
        )
        self._bar.update(epoch + 1 - self._bar.n)

    def _words(self, own: float | None) -> str:
        return ", ".join(filter(None, [self._progress.place(), self._progress.left(own)]))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the line."""
        self.close()

    def close(self) -> None:
        """Leaves the line as it is; what is printed next stands below it."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """Returns a duration in words, as coarse as an estimate is."""
    return pages.duration(5 * max(1, round(seconds / 5)) if seconds < 100 else seconds, digits=0)
