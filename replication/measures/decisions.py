"""What turns a model's probabilities into an answer: labels, calibration, when to abstain."""

import dataclasses
import math
from typing import Any

import numpy as np

from replication.drawing import shown
from replication.measures import calibration, one_class
from replication.measures.positive import positive_members
from replication.runs import results
from tfds_pap import files
from tfds_pap.errors import PapError

#: Confidences are compared with this slack, as the threshold is itself an image's confidence.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Decision:
    """How probabilities are read; all of it was fitted on tune images.

    Attributes:
        labels: Class names, in the order of the probabilities.
        temperature: Of the calibration; None where none was fitted.
        threshold: Calibrated confidence below which the model abstains; None where there is none.
    """

    labels: tuple[str, ...]
    temperature: float | None
    threshold: float | None

    def hsil_plus(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the calibrated probability of HSIL or SCC, float64 `[n]`.

        Args:
            probabilities: The network's own, `[n, 4]`.

        Raises:
            ValueError: If the classes are not those of stage 2.
        """
        positive = positive_members(self.labels)
        if positive is None or positive[0] != "HSIL+":
            raise ValueError(f"expected the classes of stage 2, got {', '.join(self.labels)}")
        return self._calibrated(probabilities)[:, positive[1]].sum(axis=1)

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
    return Decision(tuple(fit.info["class_names"]), temperature, threshold), missing


#: Figures of a fit that a user of its answers must know, in the order in which they are told.
_SCORED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "hsil_plus_sensitivity": "HSIL+ sensitivity",
    "hsil_plus_specificity": "HSIL+ specificity",
}


def scored(fit: results.Fit) -> list[str]:
    """Says what a fit scored on the test images of its own run, in sentences.

    Args:
        fit: A finished fit.

    Raises:
        PapError: Its metrics hold no calibration.
    """
    found, test = metrics(fit), fit.predictions.select("test")
    figures = [
        f"{name} {_figure(found.get(f'{key}_by_group') or found[key])}"
        for key, name in _SCORED.items()
        if key in found
    ]
    majority = found["majority_baseline"]["value"]
    said = (
        f"In its own run, on {len(test):,} test images: {', '.join(figures)}; always naming the "
        f"most frequent class would score {100 * majority:.1f} % accuracy."
    )
    remark = one_class.remark(test.predicted, test.class_names, test.labels)
    return [said, remark] if remark else [said]


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
    found = files.read_json(path)
    if "triage" not in found:
        raise PapError(f"{path}: expected calibration and threshold; run the command again")
    return found
