"""The colours of figures and pages, which people with any colour vision tell apart.

Okabe and Ito's seven, and for dark grounds seven of the same hues. A colour never stands alone:
each class has its letter, each line its dashes, so that 20 of them stay apart.
"""

from typing import Any

import matplotlib
import numpy as np

from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

#: RGB of NILM, LSIL, HSIL and SCC.
COLOURS = ((0, 114, 178), (230, 159, 0), (213, 94, 0), (160, 32, 120))

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


def colour(class_id: int, classes: Classes) -> tuple[int, int, int]:
    """Returns the RGB of a class in pictures of fields, the same wherever it stands.

    The papers' four have colours of their own. Of other classes neighbours differ in hue, and from
    the eighth on in lightness as well; the letters of `letters` tell all apart without colour.

    Args:
        class_id: Position among the classes.
        classes: What is known of them.

    Example:
        >>> from tfds_pap.classes import Classes
        >>> lab = Classes.known([f"class {n}" for n in range(20)])
        >>> len({colour(n, lab) for n in range(20)})
        20
    """
    name = classes.names[class_id]
    if set(classes.names) == set(STAGE2_CLASSES):
        return COLOURS[STAGE2_CLASSES.index(name)]
    hues = [rgb for rgb in LINES if rgb != BLACK]
    turn, place = divmod(class_id, len(hues))
    base = np.array([int(hues[place][n : n + 2], 16) for n in (1, 3, 5)])
    shade = (base, base * 0.55, base + 0.55 * (255 - base), base * 0.3)[turn]
    red, green, blue = (int(value) for value in shade.round())
    return red, green, blue


def hexadecimal(class_id: int, classes: Classes) -> str:
    """Returns `colour` as CSS and matplotlib take it."""
    return "#{:02x}{:02x}{:02x}".format(*colour(class_id, classes))


def letters(classes: Classes) -> tuple[str, ...]:
    """Returns a mark of one to three characters for each class, no two alike.

    Initials where they differ, else numbers from 1.

    Args:
        classes: What is known of them.

    Example:
        >>> from tfds_pap.classes import Classes
        >>> letters(Classes.known(("NILM", "LSIL", "HSIL", "SCC")))
        ('N', 'L', 'H', 'S')
        >>> letters(Classes.known(("Mild dysplasia", "Moderate dysplasia")))
        ('1', '2')
    """
    initials = tuple(name[:1].upper() for name in classes.shown)
    if len(set(initials)) == len(initials) and all(letter.isascii() for letter in initials):
        return initials
    return tuple(str(number + 1) for number in range(len(initials)))


def is_light(class_id: int, classes: Classes) -> bool:
    """Returns whether letters on the colour of a class should be dark.

    Args:
        class_id: Position among the classes.
        classes: What is known of them.

    Example:
        >>> from tfds_pap.classes import Classes
        >>> [is_light(n, Classes.known(("NILM", "LSIL", "HSIL", "SCC"))) for n in range(4)]
        [False, True, False, False]
    """
    red, green, blue = colour(class_id, classes)
    # Luma of ITU-R BT.601.
    return 0.299 * red + 0.587 * green + 0.114 * blue > 150
