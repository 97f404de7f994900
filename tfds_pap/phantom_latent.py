"""What makes the class of a phantom cell: the distributions its latent parameters are drawn from.

Most cells are typical, more alike within a class than real ones, so that a network learns the
classes in minutes on two cores. A few look like those of a neighbouring class, so no reader of the
pictures can be perfect; `ceiling` tells how good one can be.
"""

import dataclasses
from typing import Any

import numpy as np

from tfds_pap import taxonomy
from tfds_pap.phantom_canvas import Stream, generator

# Latent parameters of a cell: the bounds a draw is clipped to, then mean and standard deviation of
# its bell-shaped distribution in NILM, LSIL, HSIL and SCC.
_TRAITS = {
    # Mean nuclear radius, pixels of the field.
    "radius": ((5.0, 30.0), (9.6, 0.7), (15.0, 1.1), (13.4, 1.0), (16.0, 1.6)),
    # Nuclear radius / cytoplasmic radius (the nucleus-to-cytoplasm ratio).
    "ratio": ((0.09, 0.88), (0.16, 0.025), (0.26, 0.03), (0.55, 0.05), (0.48, 0.06)),
    # Absorbance of the nucleus (natural logarithm).
    "chromasia": ((0.35, 2.80), (0.82, 0.07), (0.98, 0.08), (1.34, 0.11), (1.82, 0.14)),
    # Contrast of the chromatin, relative to chromasia.
    "coarseness": ((0.03, 0.95), (0.18, 0.04), (0.30, 0.05), (0.46, 0.06), (0.54, 0.08)),
    # Amplitude of the nuclear contour, relative to its radius.
    "irregularity": ((0.005, 0.40), (0.035, 0.01), (0.065, 0.014), (0.115, 0.02), (0.18, 0.03)),
    # Long axis / short axis of the nucleus.
    "elongation": ((1.0, 3.6), (1.16, 0.05), (1.24, 0.06), (1.30, 0.08), (1.80, 0.20)),
    # Absorbance of the cytoplasm.
    "density": ((0.10, 0.90), (0.34, 0.04), (0.38, 0.045), (0.52, 0.05), (0.58, 0.055)),
}
# The same for what a cell has or has not: probability in NILM, LSIL, HSIL and SCC.
_CHANCES = {
    "halo": (0.02, 0.80, 0.02, 0.02),  # Perinuclear clearing, as in a koilocyte.
    "binucleate": (0.02, 0.65, 0.02, 0.04),
    "keratin": (0.01, 0.01, 0.02, 0.80),  # Orange cytoplasm.
    "pink": (0.75, 0.06, 0.02, 0.03),  # Eosinophilic cytoplasm, unless keratinised.
    "basophilic": (0.02, 0.04, 0.80, 0.08),  # Violet-blue cytoplasm, unless one of the above.
    "diathesis": (0.02, 0.02, 0.04, 0.80),  # Tumour debris around it.
}

# Share of the cells that look like those of a neighbouring class.
_ATYPICAL = 0.04


@dataclasses.dataclass(frozen=True)
class Latent:
    """What a cell is drawn from; `_TRAITS` and `_CHANCES` tell the units and the distributions."""

    radius: float
    ratio: float
    chromasia: float
    coarseness: float
    irregularity: float
    elongation: float
    density: float
    halo: bool
    binucleate: bool
    keratin: bool
    pink: bool
    basophilic: bool
    diathesis: bool


def _bell(rng: np.random.Generator, mean: float, deviation: float) -> float:
    # A sum of four uniforms has variance 1/3: bell-shaped without logarithms.
    return mean + deviation * 1.7320508 * (float(rng.random(4).sum()) - 2.0)


def check_label(label: str, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError that names the allowed labels, unless `label` is one of them."""
    if label not in allowed:
        raise ValueError(f"label must be one of {', '.join(allowed)}; got {label!r}")


def draw_latent(label: str, rng: np.random.Generator) -> Latent:
    """Draws the latent parameters of one cell of a class."""
    check_label(label, taxonomy.STAGE2_CLASSES)
    column = taxonomy.STAGE2_CLASSES.index(label)
    values: dict[str, Any] = {}
    draw = float(rng.random())
    if draw < _ATYPICAL:
        step = 1 if draw < _ATYPICAL / 2 else -1
        # A class at either end has one neighbour.
        inside = 0 <= column + step < len(taxonomy.STAGE2_CLASSES)
        column += step if inside else -step
    for name, ((low, high), *classes) in _TRAITS.items():
        values[name] = min(max(_bell(rng, *classes[column]), low), high)
    for name, chances in _CHANCES.items():
        values[name] = float(rng.random()) < chances[column]
    return Latent(**values)


def ceiling(per_class: int = 2000, seed: int = 0) -> float:
    """Accuracy of the Bayes rule for a reader who is told the latent parameters of each cell.

    Given what a cell looks like the parameters are independent, so the rule adds up their log
    likelihoods; the bell-shaped draws are taken for normal. Who knows what a cell looks like still
    errs in most of the few that look like another class.
    """
    moments = np.array([classes for _, *classes in _TRAITS.values()])
    chances = np.array(list(_CHANCES.values()))
    right = 0
    for truth, label in enumerate(taxonomy.STAGE2_CLASSES):
        rng = generator(Stream.CELL, len(taxonomy.STAGE2_CLASSES), seed, truth)
        for _ in range(per_class):
            latent = np.array(dataclasses.astuple(draw_latent(label, rng)), np.float64)
            values, signs = np.split(latent, [len(moments)])
            z = (values[:, None] - moments[..., 0]) / moments[..., 1]
            score = -(z**2 / 2 + np.log(moments[..., 1])).sum(axis=0)
            score += np.log(np.where(signs[:, None] > 0, chances, 1 - chances)).sum(axis=0)
            right += int(score.argmax() == truth)
    return right / (per_class * len(taxonomy.STAGE2_CLASSES))
