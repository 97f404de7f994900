"""The colours of the classes, which people with any colour vision tell apart (Okabe and Ito)."""

#: RGB of NILM, LSIL, HSIL and SCC. Each comes with its letter, for those who see no colour.
COLOURS = ((0, 114, 178), (230, 159, 0), (213, 94, 0), (160, 32, 120))

LETTERS = ("N", "L", "H", "S")


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
