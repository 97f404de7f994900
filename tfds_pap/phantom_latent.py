"""What makes the class of a phantom cell: the distributions its latent parameters are drawn from.

They overlap, so no reader of the pictures can be perfect; `ceiling` tells how good one can be.
"""

import dataclasses

import numpy as np

from tfds_pap import taxonomy
from tfds_pap.phantom_canvas import Stream, generator

# Latent parameters of a cell: the bounds a draw is clipped to, then mean and standard deviation of
# its bell-shaped distribution in NILM, LSIL, HSIL and SCC.
_TRAITS = {
    # Mean nuclear radius, pixels of the field.
    "radius": ((5.0, 30.0), (9.6, 1.7), (15.0, 2.7), (13.4, 2.6), (16.0, 3.9)),
    # Nuclear radius / cytoplasmic radius (the nucleus-to-cytoplasm ratio).
    "ratio": ((0.09, 0.88), (0.16, 0.06), (0.26, 0.08), (0.55, 0.12), (0.48, 0.15)),
    # Absorbance of the nucleus (natural logarithm).
    "chromasia": ((0.35, 2.80), (0.82, 0.17), (0.98, 0.21), (1.34, 0.27), (1.82, 0.36)),
    # Contrast of the chromatin, relative to chromasia.
    "coarseness": ((0.03, 0.95), (0.18, 0.09), (0.30, 0.13), (0.46, 0.16), (0.54, 0.19)),
    # Amplitude of the nuclear contour, relative to its radius.
    "irregularity": ((0.005, 0.40), (0.035, 0.025), (0.065, 0.035), (0.115, 0.05), (0.18, 0.07)),
    # Long axis / short axis of the nucleus.
    "elongation": ((1.0, 3.6), (1.16, 0.12), (1.24, 0.16), (1.30, 0.20), (1.80, 0.50)),
    # Absorbance of the cytoplasm.
    "density": ((0.10, 0.90), (0.34, 0.10), (0.38, 0.11), (0.52, 0.12), (0.58, 0.14)),
}
# The same for what a cell has or has not: probability in NILM, LSIL, HSIL and SCC.
_CHANCES = {
    "halo": (0.06, 0.55, 0.05, 0.04),  # Perinuclear clearing, as in a koilocyte.
    "binucleate": (0.04, 0.30, 0.06, 0.10),
    "keratin": (0.02, 0.03, 0.05, 0.55),  # Orange cytoplasm.
    "pink": (0.45, 0.20, 0.05, 0.10),  # Eosinophilic cytoplasm, unless keratinised.
    "basophilic": (0.06, 0.12, 0.60, 0.25),  # Violet-blue cytoplasm, unless one of the above.
    "diathesis": (0.05, 0.06, 0.12, 0.55),  # Tumour debris around it.
}


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
    column, values = taxonomy.STAGE2_CLASSES.index(label), {}
    for name, ((low, high), *classes) in _TRAITS.items():
        values[name] = min(max(_bell(rng, *classes[column]), low), high)
    for name, classes in _CHANCES.items():
        values[name] = float(rng.random()) < classes[column]
    return Latent(**values)


def ceiling(per_class: int = 2000, seed: int = 0) -> float:
    """Accuracy of the Bayes rule for a reader who is told the latent parameters of each cell.

    Given the class the parameters are independent, so the rule adds up their log likelihoods; the
    bell-shaped draws are taken for normal.
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
