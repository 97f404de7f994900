"""What the page asks of the model: which version it is, what it says of an image, and samples."""

import base64
import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from replication.learning.gradcam import overlay
from replication.measures import calibration
from serving.server.errors import ServingError
from serving.server.page import facts as page_facts
from tfds_pap import images, phantom
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

if TYPE_CHECKING:
    from serving.server.manager import Manager
    from serving.server.servable import Servable

_EXPLAIN, _DEFAULT, _DETECT = "explain", "serving_default", "detect"

#: Classes that a sample is drawn of; a model is offered those that it knows.
SAMPLES = STAGE2_CLASSES + STAGE1_CLASSES

#: Which cell and which slide: a sharp one of an ordinary stain, with its nucleus in the open.
SAMPLE_SEED, SAMPLE_SLIDE = 3, 1


def describe(manager: "Manager", spec: model_pb2.ModelSpec) -> dict[str, Any]:
    """Returns what the page tells of the version that serves now, ready for JSON.

    Args:
        manager: Holds the versions.
        spec: Which model.

    Raises:
        ServingError: No version of it serves.
    """
    with manager.use(spec) as servable:
        version, path, endpoint = servable.version, servable.path, _endpoint(servable)
        detects = _DETECT in servable.meta_graph.signature_def
    states = {
        each.version: get_model_status_pb2.ModelVersionStatus.State.Name(each.state)
        for each in manager.status(spec).model_version_status
    }
    facts = page_facts.read(path)
    offered = [n for n, label in enumerate(SAMPLES) if label in facts["labels"]]
    return {
        "name": spec.name,
        "version": version,
        "state": states.get(version, "UNKNOWN"),
        "takes_images": endpoint is not None,
        "explains": endpoint == _EXPLAIN,
        "detects": detects and facts.get("detection") is not None,
        "samples": [
            {"label": SAMPLES[n], "url": f"page/samples/{n}.png"}
            for n in offered or (() if facts["labels"] else range(len(STAGE2_CLASSES)))
        ],
        **facts,
    }


def ask(
    manager: "Manager", spec: model_pb2.ModelSpec, image: bytes, timeout: float | None
) -> dict[str, Any]:
    """Asks the model about one image.

    Args:
        manager: Holds the versions.
        spec: Which model.
        image: The file's bytes.
        timeout: Seconds; None: as long as it takes.

    Returns:
        `label` and its `meaning`, `probabilities` (pairs of class and probability, as the model
        gives them and in its order), `calibrated` (the same with its temperature), `hsil_plus`,
        `abstain`, `undecided` (whether the two highest probabilities, calibrated where they are,
        lie within the model's `margin` of each other), `threshold`, `margin`, `version`,
        `milliseconds` of the model alone, `size` (height and width in pixels), and as data URIs
        `image` as the model sees it and `heat`, its Grad-CAM overlay. None where the model has no
        such thing.

    Raises:
        ServingError: The image is broken, or the model cannot answer.
    """
    with manager.use(spec) as servable:
        endpoint = _endpoint(servable)
        if endpoint is None:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"Model {spec.name} does not turn image_bytes into probabilities and label.",
            )
        start = time.perf_counter()
        outputs = servable.run(
            endpoint, {"image_bytes": np.array([image], object)}, timeout=timeout
        )
        seconds = time.perf_counter() - start
        version, facts = servable.version, page_facts.read(servable.path)
    answer = {name: values[0] for name, values in outputs.items()}
    return {
        **(named := _named(answer, facts["labels"], facts.get("temperature"))),
        "undecided": _undecided(named, facts.get("margin", 0.0)),
        "margin": facts.get("margin", 0.0),
        "threshold": facts.get("threshold"),
        "version": version,
        "milliseconds": round(1000 * seconds, 1),
        **_pictures(answer),
    }


def detect(
    manager: "Manager", spec: model_pb2.ModelSpec, image: bytes, timeout: float | None
) -> dict[str, Any]:
    """Asks the model about a whole field.

    Args:
        manager: Holds the versions.
        spec: Which model.
        image: The file's bytes.
        timeout: Seconds; None: as long as it takes.

    Returns:
        `cells` (the most suspicious first, each with `box` as left, top, width and height in pixels
        of the field, `label`, `score`, `probabilities` as pairs, `hsil_plus`, `abstain`), `found`
        (how many there are, which may be more), `counts` by class, `version`, `milliseconds`.

    Raises:
        ServingError: The image is broken, or the model cannot answer.
    """
    with manager.use(spec) as servable:
        if _DETECT not in servable.meta_graph.signature_def:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"Model {spec.name} does not find cells in whole fields.",
            )
        start = time.perf_counter()
        outputs = servable.run(_DETECT, {"image_bytes": np.array([image], object)}, timeout=timeout)
        seconds = time.perf_counter() - start
        version, labels = servable.version, page_facts.read(servable.path)["labels"]
    cells = []
    for number in range(int(outputs["count"][0])):
        top, left, bottom, right = (float(edge) for edge in outputs["boxes"][0, number])
        probabilities = [float(value) for value in outputs["probabilities"][0, number]]
        cells.append(
            {
                "box": [left, top, right - left, bottom - top],
                "label": outputs["classes"][0, number].decode("utf-8", "replace"),
                "score": float(outputs["scores"][0, number]),
                "probabilities": list(zip(labels, probabilities, strict=True)),
                "hsil_plus": float(outputs["hsil_plus"][0, number])
                if "hsil_plus" in outputs
                else None,
                "abstain": bool(outputs["abstain"][0, number]),
            }
        )
    named = [cell["label"] for cell in cells]
    return {
        "cells": cells,
        "found": int(outputs["found"][0]),
        "counts": {label: named.count(label) for label in labels},
        "version": version,
        "milliseconds": round(1000 * seconds, 1),
    }


def _endpoint(servable: "Servable") -> str | None:
    """The signature that tells most about the bytes of an image."""
    signatures = servable.meta_graph.signature_def
    for key in (_EXPLAIN, _DEFAULT):
        if (
            key in signatures  # Asking for a key that is not there would add it.
            and set(signatures[key].inputs) == {"image_bytes"}
            and {"probabilities", "label"} <= set(signatures[key].outputs)
        ):
            return key
    return None


def _named(
    answer: Mapping[str, Any], labels: list[str], temperature: float | None
) -> dict[str, Any]:
    probabilities = [float(value) for value in answer["probabilities"]]
    if not np.isfinite(probabilities).all():
        raise ServingError(grpc.StatusCode.INTERNAL, "The model answered what is no probability.")
    if len(labels) != len(probabilities):
        labels = [f"class {number}" for number in range(len(probabilities))]
    calibrated = None
    if temperature is not None:
        # As in the graph, which gives HSIL+ and whether to abstain from these alone.
        calibrated = calibration.scaled(np.array(probabilities), temperature).tolist()
    label = answer["label"].decode("utf-8", "replace")
    hsil_plus, abstain = answer.get("hsil_plus"), answer.get("abstain")
    return {
        "label": label,
        "meaning": page_facts.MEANINGS.get(label),
        "probabilities": list(zip(labels, probabilities, strict=True)),
        "calibrated": calibrated,
        "hsil_plus": None if hsil_plus is None else float(hsil_plus),
        "abstain": None if abstain is None else bool(abstain),
    }


def _undecided(named: Mapping[str, Any], margin: float) -> bool:
    shares = named["calibrated"] or [share for _, share in named["probabilities"]]
    if len(shares) < 2:
        return False
    second, first = sorted(shares)[-2:]
    return first - second <= margin


def _pictures(answer: Mapping[str, Any]) -> dict[str, Any]:
    if "image" not in answer:
        return {"size": None, "image": None, "heat": None}
    image = np.clip(np.rint(answer["image"]), 0, 255).astype(np.uint8)
    heat = answer.get("heat")
    return {
        "size": image.shape[:2],
        "image": _data_uri(images.encode_png(image)),
        "heat": None if heat is None else _data_uri(images.encode_png(overlay(image, heat))),
    }


@functools.cache
def sample_png(number: int) -> bytes:
    """Draws a sample; the same number always gives the same picture.

    Args:
        number: Which of `SAMPLES`.

    Returns:
        PNG.
    """
    label = SAMPLES[number]
    draw = phantom.draw_cell if label in STAGE2_CLASSES else phantom.draw_roi
    return images.encode_png(draw(label, SAMPLE_SEED, slide=SAMPLE_SLIDE))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
