"""Colours are told apart with any colour vision, on light and on dark ground, and 20 lines too."""

import itertools
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from replication.drawing import figures, palette

#: G. M. Machado et al., "A Physiologically-based Model for Simulation of Color Vision Deficiency",
#: IEEE TVCG 15 (2009), at severity 1, of linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour, vision):
    x, y, z = XYZ @ np.clip(vision @ linear(colour), 0, 1) / XYZ.sum(axis=1)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    low, high = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION.values(), ids=VISION)
@pytest.mark.parametrize("ground", ["light", "dark"])
def test_any_two_colours_of_lines_differ_for_any_colour_vision(ground, vision):
    colours = [palette.DARK[one] if ground == "dark" else one for one in palette.LINES]
    seen = [lab(colour, vision) for colour in colours]
    # A difference of 2.3 is just seen (CIE76).
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_colours_stand_out_from_a_dark_ground():
    dark = palette.DARK[palette.GROUND]
    assert min(contrast(palette.DARK[one], dark) for one in palette.LINES) > 4.5
    assert contrast(palette.DARK[palette.INK], dark) > 7
    assert min(contrast(palette.DARK[one], dark) for one in palette.shades(5)) > 3


def test_twenty_lines_are_told_apart():
    styles = [palette.line(number) for number in range(20)]
    assert len(set(map(repr, styles))) == 20
    assert len({colour for colour, _ in styles}) == 7


def test_a_figure_is_as_on_paper_and_has_rules_for_the_dark():
    picture = figures.learning_curves([[{"loss": 1.0, "accuracy": 0.5}]], [None]).decode()
    root = xml.etree.ElementTree.fromstring(picture)
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert f"fill: {palette.GROUND}" in styles and f"stroke: {palette.BLUE}" in styles
    rules = re.search(r"@media \(prefers-color-scheme:dark\){(.*?)}</style>", picture)[1]
    turned = dict(re.findall(r'\[style\*="(.*?)"\]{\w+:(#\w+)!important}', rules))
    assert turned[f"fill: {palette.GROUND}"] == palette.DARK[palette.GROUND]
    # Of all colours only those that this figure has.
    assert all(rule in styles for rule in turned)
