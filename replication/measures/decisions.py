"""What turns a model's probabilities into an answer: labels, calibration, when to abstain."""

import dataclasses
import math
from typing import Any

import numpy as np

from replication.drawing import shown
from replication.measures import calibration, names, one_class
from replication.runs import results
from tfds_pap import files
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

#: Confidences are compared with this slack, as the threshold is itself an image's confidence.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Decision:
    """How probabilities are read; all of it was fitted on tune images.

    Attributes:
        labels: Class names, in the order of the probabilities.
        temperature: What logits are divided by; None where none was fitted.
        threshold: Calibrated confidence below which the model abstains; None where there is none.
        declared: What is known of the classes where their names do not tell it.
    """

    labels: tuple[str, ...]
    temperature: float | None
    threshold: float | None
    declared: Classes | None = None

    @property
    def classes(self) -> Classes:
        """What is known of the classes: declared, or by their names."""
        return self.declared or Classes.known(self.labels)

    def hsil_plus(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the calibrated probability of HSIL or SCC, or of what the classes declare.

        Args:
            probabilities: The network's own, `[n, k]`.

        Returns:
            float64 `[n]`; NaN where nobody said which classes are looked for.
        """
        severe = self.classes.severe
        if not severe:
            return np.full(len(probabilities), np.nan)
        return self._calibrated(probabilities)[:, severe].sum(axis=1)

    def abstains(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns where the calibrated confidence is below the threshold, bool `[n]`.

        Args:
            probabilities: The network's own, `[n, k]`.
        """
        if self.threshold is None:
            return np.zeros(len(probabilities), bool)
        return self._calibrated(probabilities).max(axis=1) < self.threshold - ROUNDING

    def _calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        temperature = 1.0 if self.temperature is None else self.temperature
        return calibration.scaled(np.asarray(probabilities, np.float64), temperature)


def of_fit(fit: results.Fit) -> tuple[Decision, list[str]]:
    """Returns how a fit turns probabilities into an answer, and what it cannot say, in sentences.

    Args:
        fit: A finished fit; calibration and threshold were chosen on its tune images.

    Raises:
        PapError: Its metrics hold neither.
    """
    triage = metrics(fit)["triage"]
    temperature = triage["calibration"]["temperature"]
    threshold = triage["risk_coverage"]["threshold"]
    missing = []
    if temperature is None:
        missing.append(f"hsil_plus is not calibrated: {triage['calibration']['note']}")
    if threshold is None:
        missing.append(f"No output abstain: {triage['risk_coverage']['note']}")
    declared = fit.predictions.declared
    return Decision(tuple(fit.info["class_names"]), temperature, threshold, declared), missing


#: Figures of a fit that a user of its answers must know, in the order in which they are told.
_TOLD = ("accuracy", "balanced_accuracy", "hsil_plus_sensitivity", "hsil_plus_specificity")


def scored(fit: results.Fit) -> list[str]:
    """Says what a fit scored on the test images of its own run, in sentences.

    Args:
        fit: A finished fit.

    Raises:
        PapError: Its metrics hold no calibration.
    """
    by_name, test = metrics(fit), fit.predictions.select("test")
    figures = [
        # Runs of before named the interval by group apart.
        f"{names.metric(key, test.classes).words} "
        f"{_figure(by_name.get(f'{key}_by_group') or by_name[key])}"
        for key in _TOLD
        if key in by_name
    ]
    majority = by_name["majority_baseline"]["value"]
    sentence = (
        f"In its own run, on {len(test):,} test images: {', '.join(figures)}; always naming the "
        f"most frequent class would score {100 * majority:.1f} % accuracy."
    )
    remark = one_class.remark(test.predicted, test.class_names, test.labels)
    return [sentence, remark] if remark else [sentence]


def _figure(estimate: dict[str, Any]) -> str:
    value, low, high = (
        math.nan if estimate[key] is None else estimate[key] for key in ("value", "low", "high")
    )
    cell = shown.shown(value, low, high)
    return f"{cell.value} {cell.interval}".strip()


def metrics(fit: results.Fit) -> dict[str, Any]:
    """Reads a fit's metrics.

    Args:
        fit: A finished fit.

    Raises:
        PapError: They hold no calibration.
    """
    path = fit.directory / "metrics.json"
    by_name = files.read_json(path)
    if "triage" not in by_name:
        raise PapError(f"{path}: expected calibration and threshold; run the command again")
    return by_name
