"""A picture of an image with what a model says of it below, and what its folder says it is."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from replication.naming.prediction import Prediction
from tfds_pap import taxonomy

_PIXELS = 300
_CAPTION_PIXELS = 60


def truth(path: str, names: Sequence[str]) -> str:
    """Returns the class that a folder tells, the authors' or one named like a class; else "".

    Args:
        path: Of the image, or its URL.
        names: Of the model's classes.

    Example:
        >>> truth("DB_4/train/1/a.jpg", ()), truth("s3://cells/SCC/a.jpg", ()), truth("a.jpg", ())
        ('HSIL', 'SCC', '')
    """
    place = Path(path)
    tree = next((part for part in reversed(place.parts) if part in taxonomy.TREE_FOLDERS), None)
    folder = place.parent.name
    if tree is not None:
        return taxonomy.TREE_FOLDERS[tree].get(folder, "")
    known = (*names, *taxonomy.STAGE2_CLASSES, *taxonomy.STAGE1_CLASSES)
    return folder if folder in known else ""


def picture(data: bytes, answer: Prediction, true: str) -> bytes:
    """Returns a PNG of the image with a caption below it: red where the truth is another class.

    Args:
        data: Of the image file.
        answer: What the model says.
        true: From `truth`.
    """
    # Imports TensorFlow.
    from tfds_pap import decoding

    image = decoding.decode_and_resize(data, _PIXELS).numpy()
    caption = np.full((_CAPTION_PIXELS, _PIXELS, 3), 255, np.uint8)
    lines = [f"{answer.label} {answer.probabilities[answer.class_id]:.2f}"]
    lines += [f"truth {true}"] if true else []
    cells = taxonomy.STAGE1_CLASSES
    comparable = true and (true in cells) == (answer.label in cells)
    colour = (180, 30, 30) if comparable and true != answer.label else (20, 20, 20)
    for line, text in enumerate(lines):
        cv2.putText(caption, text, (8, 24 + 26 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, 2)
    whole = cv2.cvtColor(np.vstack([image, caption]), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", whole)[1].tobytes()
