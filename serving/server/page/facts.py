"""What the page tells of the version that serves: how good it is, on what, and what it is not for.

Everything is read from the `metadata.json` that `serving.export` leaves beside the model. A model
that came another way is served all the same; then nothing is known of it, and the page says so.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replication.drawing import palette, shown
from replication.measures import names
from tfds_pap.classes import Classes

_METADATA = Path("assets.extra") / "metadata.json"
_FORMAT = 1

#: The Bethesda System's names; the classes of stage 1 need none.
MEANINGS = {
    "NILM": "negative for intraepithelial lesion or malignancy",
    "LSIL": "low-grade squamous intraepithelial lesion",
    "HSIL": "high-grade squamous intraepithelial lesion",
    "SCC": "squamous cell carcinoma",
}


def read(version: Path) -> dict[str, Any]:
    """Returns what is known of a version, ready for JSON.

    Args:
        version: Its directory.

    Returns:
        `unknown`: why nothing is known, "" where something is. Then `title`, `details`, `labels`,
        `metrics` (each with `name`, `value`, `low`, `high`, `count` and the rounded `text`),
        `classes` (each with `name`, `shown`, `colour` and `letter`), `positive` (what is looked
        for: `name` and `members`), `methods` (of the intervals), `test_images` (by class),
        `temperature`, `threshold`,
        `margin` (within which the two highest probabilities decide nothing), `remarks`,
        `detection` (None where whole fields are not read; else `roi` in pixels, `words`), `notes`,
        `limits`, `announcement`, `intended_use`, `audit` and `exported`; of an unknown version only
        the empty `labels`.

    Example:
        >>> read(Path("a model of somebody else"))["unknown"]
        'it has no assets.extra/metadata.json'
    """
    try:
        metadata = json.loads((version / _METADATA).read_bytes())
    except FileNotFoundError:
        return _unknown(f"it has no {_METADATA}")
    except (OSError, ValueError):
        return _unknown(f"its {_METADATA} cannot be read")
    try:
        if metadata["format"] != _FORMAT:
            return _unknown(f"its {_METADATA} is of format {metadata['format']}, not {_FORMAT}")
        return _facts(metadata)
    except (KeyError, TypeError, ValueError, AttributeError):
        return _unknown(f"its {_METADATA} is not as serving.export writes it")


def _unknown(reason: str) -> dict[str, Any]:
    return {"unknown": reason, "labels": []}


def _facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    model, metrics = metadata["model"], metadata["metrics"]
    calibration, abstention = metadata["calibration"], metadata["abstention"]
    classes = _classes(metadata)
    rows = [
        # Runs of before named the interval by group apart.
        _metric(_title(key, classes), metrics.get(f"{key}_by_group") or metrics[key])
        for key in names.SHARES
        if metrics.get(key) and key != "macro_f1"
    ]
    per_class = metrics.get("per_class", {})
    for label, of in per_class.items():
        # Naming everything SCC gives SCC a sensitivity of 100 %.
        kinds = [kind for kind in ("sensitivity", "specificity") if kind in of]
        rows += [_metric(f"{label} {kind}", of[kind]) for kind in kinds]
    margin = _margin(metrics, calibration["temperature"] is not None)
    size, temperature = int(model["input_size"]), calibration["temperature"]
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    return {
        "unknown": "",
        "title": str(model["name"]),
        "details": (
            f"Stage {model['stage']}, {model['protocol']} protocol, seed {model['seed']}; "
            f"{int(model['parameters']):,} parameters; "
            f"images are resized to {size} × {size} px ({model['resize']})."
        ),
        "labels": [str(label) for label in metadata["labels"]],
        "classes": [
            {
                "name": name,
                "shown": classes.shown[number],
                "colour": palette.hexadecimal(number, classes),
                "letter": palette.letters(classes)[number],
            }
            for number, name in enumerate(classes.names)
        ],
        "positive": {"name": classes.positive_name, "members": _members(classes)},
        "metrics": rows,
        "methods": shown.methods({row["name"]: row["method"] for row in rows}),
        "test_images": {label: int(of["support"]) for label, of in per_class.items()},
        "temperature": temperature,
        "threshold": abstention["threshold"],
        "margin": margin,
        "detection": _detection(metadata.get("detection")),
        "remarks": [str(remark) for remark in metadata.get("remarks", ())],
        "notes": [
            *(str(each["note"]) for each in (calibration, abstention) if each["note"]),
            _margin_note(margin),
        ],
        "limits": {
            "formats": [str(name) for name in metadata["limits"]["formats"]],
            "max_pixels": int(metadata["limits"]["max_pixels"]),
        },
        "announcement": str(metadata["announcement"]),
        "intended_use": str(metadata["intended_use"]),
        "audit": [str(line) for line in metadata["audit"]],
        "exported": str(metadata["exported"]["time"]),
    }


def _classes(metadata: Mapping[str, Any]) -> Classes:
    """What is known of the classes; versions from before said their names alone."""
    if declared := metadata.get("classes"):
        return Classes.from_json(declared)
    return Classes.known([str(label) for label in metadata["labels"]])


def _members(classes: Classes) -> str:
    shown_names = dict(zip(classes.names, classes.shown, strict=True))
    return " or ".join(shown_names[name] for name in classes.positive)


def _title(key: str, classes: Classes) -> str:
    words = names.metric(key, classes).words
    return words[0].upper() + words[1:]


def _margin(metrics: Mapping[str, Any], calibrated: bool) -> float:
    """How near to each other the two highest probabilities decide nothing; 0: only where equal.

    Either may be off by the expected calibration error (ECE) that the model had on its own test
    images, so that twice the ECE may turn their order round.
    """
    triage_scores = (metrics.get("triage") or {}).get("calibration") or {}
    scores = triage_scores.get("after" if calibrated else "before") or {}
    error = (scores.get("ece") or {}).get("value")
    return 0.0 if error is None else 2 * float(error)


def _margin_note(margin: float) -> str:
    if not margin:
        return (
            "No calibration error is known of this model: it is undecided only between equal "
            "probabilities."
        )
    return (
        f"The two highest probabilities decide nothing where they lie within {100 * margin:.1f} "
        "points: twice the expected calibration error on the model's own test images, by which "
        "each of the two may be off."
    )


def _detection(rules: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How fields are read; None where they are not, as of versions from before there was this."""
    if rules is None:
        return None
    roi, stride = int(rules["roi"]), int(rules["stride"])
    return {
        "roi": roi,
        "words": (
            f"{rules['stage1']['name']} looks at regions of {roi} × {roi} px every {stride} px and "
            f"keeps those with a probability of a cell of {float(rules['threshold']):g} or more; "
            f"of kept ones nearer than {float(rules['suppression_radius']):g} px only the most "
            f"probable stays. At most {int(rules['max_detections'])} cells are answered. "
            "The field is read and shown as its file stores it; its EXIF orientation is ignored."
        ),
    }


def _metric(name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = (
        math.nan if estimate[key] is None else float(estimate[key])
        for key in ("value", "low", "high")
    )
    rounded = shown.shown(value, low, high)
    # A narrow table may break before the interval, not within it.
    interval = rounded.interval.replace(" ", "\u00a0")
    return {
        "name": name,
        **{key: estimate[key] for key in ("value", "low", "high")},
        "count": int(estimate["count"]),
        "method": str(estimate["method"]),
        "text": f"{rounded.value} {interval}".rstrip(),
    }
