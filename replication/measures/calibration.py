"""Whether a probability means what it says: reliability, its summary figures, and temperature.

The temperature is fitted on the tune images alone; the test images only show what it did.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize, special

from replication.measures import shares
from replication.measures.intervals import Estimate
from replication.measures.positive import positive_class
from replication.measures.predictions import Predictions

#: Bins of the expected calibration error in Guo et al. (2017).
BINS = 15

#: Where the temperature is searched; a fit that ends here says more about the tune images.
TEMPERATURE_BOUNDS = (0.01, 100.0)

#: Stands for a probability of 0, which has no logarithm: the smallest normal float32.
SMALLEST = float(np.finfo(np.float32).tiny)

#: Why there is no interval of the error: few images make it too large, and so every resample.
_NO_ECE = "no interval: few images make it too large; see what chance alone would show"
_NO_LOSS = "no interval: a mean without an upper end, which few images make"

#: Draws behind the error that a calibrated model would show.
_CONSISTENCY_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Bin:
    """The images whose score lies in ``(lower, upper]``.

    Attributes:
        lower: Lower edge; the first bin holds 0 as well.
        upper: Upper edge.
        count: Number of images, 1 or more.
        confidence: Mean score.
        accuracy: Share of hits: of right images, or of positive ones.
        low: Lower end of the interval of the share, by group where groups are known; NaN without.
        high: Upper end.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well probabilities fit what happened.

    Attributes:
        ece: Expected calibration error: mean distance of score and share of hits over the bins,
            weighted by their images.
        ece_if_calibrated: What the ECE of a perfectly calibrated model would be with these scores
            on as many images, and where 95 % of such errors lie. It is above 0, as a bin of few
            images is never exactly right. Source: J. Bröcker and L. A. Smith, "Increasing the
            reliability of reliability diagrams", Weather Forecast. 22 (2007) 651-661.
        brier: Brier score.
        log_loss: Mean negative natural logarithm of the probability of the truth.
        bins: The bins that hold images.
    """

    ece: Estimate
    ece_if_calibrated: Estimate
    brier: Estimate
    log_loss: Estimate
    bins: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration on the test images, before and after temperature scaling.

    Attributes:
        temperature: Fitted on the tune images; None where there are none.
        note: On what it was fitted, or why it was not, in a sentence.
        tune_images: Number of tune images.
        test_images: Number of test images.
        binning: How the bins were made, in words.
        before: With the probabilities as the model gave them; top label against the truth, Brier
            score over all classes (0 to 2).
        after: With the temperature; None without one.
        hsil_plus_before: Of P(HSIL) + P(SCC) against HSIL or SCC, Brier score of that one
            probability (0 to 1). None unless the classes are the four Bethesda classes.
        hsil_plus_after: The same with the temperature; None without one.
    """

    temperature: float | None
    note: str
    tune_images: int
    test_images: int
    binning: str
    before: Scores
    after: Scores | None
    hsil_plus_before: Scores | None
    hsil_plus_after: Scores | None


def one_role(predictions: Predictions, role: str) -> Predictions:
    """Checks that all images have one role, and sorts them by id.

    Args:
        predictions: Predictions of any images.
        role: 'tune' or 'test'.

    Returns:
        The same images by id, as the order of the rows must not move a figure.

    Raises:
        ValueError: There are none, or one has another role.
    """
    if not len(predictions):
        raise ValueError(f"expected predictions of {role} images, got none")
    if others := set(predictions.splits) - {role}:
        raise ValueError(
            f"expected predictions of {role} images alone, got {', '.join(sorted(others))} images"
        )
    return predictions.take(sorted(range(len(predictions)), key=predictions.ids.__getitem__))


def fit_temperature(predictions_tune: Predictions) -> float:
    """Fits the one number that all logits are divided by.

    It minimises the log loss; logarithms of the probabilities are logits up to a constant, which
    the softmax takes out. The loss is convex in 1 / temperature, so the minimum is the only one.
    Where every image is named right no temperature is best: the lower, the lower the loss. Such
    images cannot tell, and the answer is 1.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017.

    Args:
        predictions_tune: Predictions of tune images alone.

    Returns:
        The temperature, within `TEMPERATURE_BOUNDS`. Above 1: the model was too sure of itself.

    Raises:
        ValueError: No predictions, or of another role.

    Example:
        >>> p = Predictions("abcd", [""] * 4, ["tune"] * 4, [1, 1, 1, 0],
        ...     [[0.01, 0.99]] * 4, ("background", "cell"))
        >>> temperature = fit_temperature(p)  # 99 % was said, and 75 % were right
        >>> bool(np.isclose(apply_temperature(p, temperature).probabilities[0, 1], 0.75))
        True
    """
    p = one_role(predictions_tune, "tune")
    logits = _logits(p.probabilities)
    true = logits[np.arange(len(p)), p.labels]
    if np.array_equal(true, logits.max(axis=1)):
        return 1.0

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.mean(special.logsumexp(scale * logits, axis=1) - scale * true))

    minimum = optimize.minimize_scalar(
        loss,
        bounds=tuple(map(math.log, TEMPERATURE_BOUNDS)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(math.exp(minimum.x))


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Divides the logits by a temperature; the named classes stay.

    Args:
        predictions: Predictions of any roles.
        temperature: Above 0, for example from `fit_temperature`.

    Returns:
        The same images with other probabilities.

    Raises:
        ValueError: The temperature is not a number above 0.
    """
    probabilities = scaled(predictions.probabilities, temperature)
    return dataclasses.replace(predictions, probabilities=probabilities)


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the logits of probabilities by a temperature.

    Args:
        probabilities: ``[..., k]``.
        temperature: Above 0.

    Returns:
        float64 ``[..., k]``.

    Raises:
        ValueError: The temperature is not a number above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    return special.softmax(_logits(probabilities) / temperature, axis=-1)


def calibrate(
    predictions: Predictions,
    bins: int = BINS,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Fits a temperature on the tune images and shows on the test images what it does.

    Args:
        predictions: A whole predictions file: test images, and tune images where there are any.
        bins: Number of bins of equal width over 0..1.
        confidence: Level of the intervals, between 0 and 1.
        seed: Seed of the draws of chance.

    Returns:
        The figures before and after. Without tune images there is no temperature, and none is
        fitted on test images instead.

    Raises:
        ValueError: There are no test images, or fewer than 1 bin.
    """
    test, tune = one_role(predictions.select("test"), "test"), predictions.select("tune")
    temperature = fit_temperature(tune) if len(tune) else None
    scaled = None if temperature is None else apply_temperature(test, temperature)

    def top_label(p: Predictions) -> Scores:
        hits = p.predicted == p.labels
        return _scores(p, _normalised(p).max(axis=1), hits, bins, confidence, seed)

    def severe(p: Predictions) -> Scores | None:
        positive = positive_class(p)
        if positive is None or not p.classes.severe:
            return None
        pair = positive.scores, positive.truth
        return _scores(p, *pair, bins, confidence, seed, one_score=True)

    return Calibration(
        temperature=temperature,
        note=_note(temperature, tune),
        tune_images=len(tune),
        test_images=len(test),
        binning=f"{bins} bins of equal width over 0 to 1; an edge belongs to the bin below it",
        before=top_label(test),
        after=None if scaled is None else top_label(scaled),
        hsil_plus_before=severe(test),
        hsil_plus_after=None if scaled is None else severe(scaled),
    )


def _note(temperature: float | None, tune: Predictions) -> str:
    if temperature is None:
        return (
            "No temperature was fitted: this protocol has no tune images, and one fitted on the "
            "test images would flatter."
        )
    images = f"{len(tune):,} tune image{'' if len(tune) == 1 else 's'}"
    if (tune.predicted == tune.labels).all():
        return f"All {images} are named right, from which no temperature can be told: it stays 1."
    note = f"The temperature {temperature:.3g} was fitted on {images} alone."
    if any(math.isclose(temperature, end, rel_tol=1e-3) for end in TEMPERATURE_BOUNDS):
        low, high = TEMPERATURE_BOUNDS
        note += f" It lies at the end of the range that is searched, {low:g} to {high:g}."
    return note


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, SMALLEST))


def _normalised(predictions: Predictions) -> np.ndarray:
    return predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)


def _bin_numbers(scores: np.ndarray, bins: int) -> np.ndarray:
    if bins < 1:
        raise ValueError(f"bins: expected 1 or more, got {bins}")
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], scores, side="left")


def _bins(scores: np.ndarray, hits: np.ndarray, groups: tuple[str, ...], bins: int) -> list[Bin]:
    numbers, edges = _bin_numbers(scores, bins), np.linspace(0, 1, bins + 1)
    filled = []
    for number in np.unique(numbers):
        inside = numbers == number
        count, right = int(inside.sum()), int(hits[inside].sum())
        lower, upper = float(edges[number]), float(edges[number + 1])
        mean = float(scores[inside].mean())
        share = shares.share(hits, inside, groups)
        filled.append(Bin(lower, upper, count, mean, right / count, share.low, share.high))
    return filled


def _ece(gaps: np.ndarray, numbers: np.ndarray) -> float:
    """Expected calibration error.

    Args:
        gaps: Score - hit, float64 ``[n]``.
        numbers: Bin of each image, int64 ``[n]``.
    """
    return float(np.abs(np.bincount(numbers, gaps)).sum() / len(gaps))


def _scores(
    p: Predictions,
    scores: np.ndarray,
    hits: np.ndarray,
    bins: int,
    confidence: float,
    seed: int,
    *,
    one_score: bool = False,
) -> Scores:
    numbers = _bin_numbers(scores, bins)
    if one_score:
        squares, chosen = (scores - hits) ** 2, np.where(hits, scores, 1 - scores)
    else:
        probabilities, truth = _normalised(p), np.eye(len(p.class_names))[p.labels]
        squares = ((probabilities - truth) ** 2).sum(axis=1)
        chosen = probabilities[np.arange(len(p)), p.labels]
    # The same floor as that of the log loss in `evaluation`, which is scikit-learn's.
    losses = -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1))

    # The score of one image is at most this, so that a share of it has an interval.
    most, every = (1.0 if one_score else 2.0), np.ones(len(p), bool)
    brier = shares.share(squares / most, every, p.groups, confidence)
    return Scores(
        ece_if_calibrated=_ece_if_calibrated(scores, numbers, confidence, seed),
        bins=tuple(_bins(scores, hits, p.groups, bins)),
        ece=Estimate(_ece(scores - hits, numbers), math.nan, math.nan, len(p), _NO_ECE),
        brier=Estimate(
            float(squares.mean()), most * brier.low, most * brier.high, len(p), brier.method
        ),
        log_loss=Estimate(float(losses.mean()), math.nan, math.nan, len(p), _NO_LOSS),
    )


def _ece_if_calibrated(
    scores: np.ndarray, numbers: np.ndarray, confidence: float, seed: int
) -> Estimate:
    rng = np.random.default_rng(seed)
    errors = [
        _ece(scores - (rng.random(len(scores)) < scores), numbers)
        for _ in range(_CONSISTENCY_DRAWS)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(errors, [tail, 100 - tail])
    method = f"{_CONSISTENCY_DRAWS} draws of the truth from the scores, images independent"
    return Estimate(float(np.mean(errors)), float(low), float(high), len(scores), method)
