"""The colours of figures and pages, which people with any colour vision tell apart.

Okabe and Ito's seven, and for dark grounds seven of the same hues. A colour never stands alone:
each class has its letter, each line its dashes, so that 20 of them stay apart.
"""

from typing import Any

import matplotlib
import numpy as np

#: RGB of NILM, LSIL, HSIL and SCC. Each comes with its letter, for those who see no colour.
COLOURS = ((0, 114, 178), (230, 159, 0), (213, 94, 0), (160, 32, 120))

LETTERS = ("N", "L", "H", "S")

#: Of lines, bars and marks.
BLUE, GREEN, VERMILION, BLACK = "#0072b2", "#009e73", "#d55e00", "#000000"
PINK, AMBER, SKY = "#cc79a7", "#e69f00", "#56b4e9"
LINES = (BLUE, GREEN, VERMILION, BLACK, PINK, AMBER, SKY)

#: Of text, what lies under everything, grids, and what only helps the eye.
INK, GROUND, GRID, GREY = "#333333", "#ffffff", "#dddddd", "#8a8a8a"

#: Of what is laid under a line of `BLUE`.
FAINT = "#a6cbe3"

#: Text on a strong colour, which stays light on a dark page.
ON_COLOUR = "#fffffe"

#: Matplotlib's dashes, so that lines are told apart without colour as well.
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))

#: Steps between light and dark that `shades` takes its colours from.
_STEPS = 16


def _steps(name: str, first: float) -> list[str]:
    colours = matplotlib.colormaps[name](np.linspace(first, 1, _STEPS))
    return [matplotlib.colors.to_hex(colour) for colour in colours]


#: On dark ground: what each colour becomes there. All others stay as they are.
DARK = {
    BLUE: "#2f8fe0",
    GREEN: "#19b98a",
    VERMILION: "#f4722b",
    BLACK: "#ffffff",
    PINK: "#d77fc0",
    AMBER: "#ffd45e",
    SKY: "#8fd3ff",
    INK: "#e6e9eb",
    GROUND: "#1d2125",
    GRID: "#3a4147",
    FAINT: "#32536a",
    # From light to dark becomes from grey to light: more is what stands out.
    **dict(zip(_steps("cividis_r", 0.12), _steps("cividis", 0.45), strict=True)),
}

#: From nothing to much, laid on any ground; not quite `BLUE`, which changes on a dark one.
DEPTH = matplotlib.colors.LinearSegmentedColormap.from_list(
    "depth", [(0, 113 / 255, 178 / 255, alpha) for alpha in (0, 1)]
)


def line(number: int) -> tuple[str, Any]:
    """Returns colour and dashes of a line; of the first 28 no two are alike in both.

    Args:
        number: 0 or more.

    Example:
        >>> line(0), line(7)[0] == line(0)[0], line(7)[1] == line(0)[1]
        (('#0072b2', '-'), True, False)
    """
    turn, place = divmod(number, len(LINES))
    return LINES[place], DASHES[(place + turn) % len(DASHES)]


def shades(count: int) -> list[str]:
    """Returns colours that differ in lightness for any colour vision, those of most the darkest.

    Args:
        count: 1 to 16.
    """
    places = np.linspace(0, _STEPS - 1, count).round().astype(int)
    return [_steps("cividis_r", 0.12)[place] for place in places]


def with_dark_twin(svg: str) -> str:
    """Adds the rules that turn a figure's colours where its reader's screen is dark.

    The colours in the file stay: programs that know no CSS draw it as it is on paper.

    Args:
        svg: The file, with its colours in `style` attributes.
    """
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
        if f"{what}: {light}" in svg
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    # Behind matplotlib's own rules, which come first.
    return svg.replace("</defs>", f"{style}</defs>", 1)


def is_light(class_id: int) -> bool:
    """Returns whether letters on the colour of a class should be dark.

    Args:
        class_id: Position in `STAGE2_CLASSES`.

    Example:
        >>> [is_light(class_id) for class_id in range(4)]
        [False, True, False, False]
    """
    red, green, blue = COLOURS[class_id]
    # Luma of ITU-R BT.601.
    return 0.299 * red + 0.587 * green + 0.114 * blue > 150
