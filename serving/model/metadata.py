"""What a served version says of itself: where it comes from, how good it is, what it is not for."""

import datetime
from pathlib import Path
from typing import Any

from replication.drawing import pages
from replication.measures import decisions, one_class
from replication.report import model_card
from replication.runs import environment as run_environment
from replication.runs import results
from replication.runs.directory import RunDirectory
from serving.model.graph import Graph
from tfds_pap import files

FILE_NAME = "metadata.json"
FORMAT = 1

INTENDED_USE = (
    "Research software, not a medical device: to repeat published experiments and to compare "
    "methods on images of single cells. It must not be used for screening, diagnosis or any "
    "decision about a patient."
)


def describe(run: RunDirectory, fit: results.Fit, graph: Graph) -> dict[str, Any]:
    """Returns the content of `assets.extra/metadata.json`.

    Args:
        run: The run of the fit; its report shows the same figures.
        fit: What is exported.
        graph: How it is served.
    """
    manifest, metrics, info = run.manifest(), decisions.metrics(fit), fit.info
    environment = dict(manifest.get("environment", {}))
    # Of use to who has the run; who asks a server need not learn folders and packages.
    for inner in ("repeat", "packages"):
        environment.pop(inner, None)
    if "command" in environment:
        environment["command"] = model_card.without_folders(environment["command"])
    triage = metrics["triage"]
    test = fit.predictions.select("test")
    remark = one_class.remark(test.predicted, test.class_names, test.labels)
    return {
        "format": FORMAT,
        "model": {
            "name": info["name"],
            "stage": info["stage"],
            "protocol": info["protocol"],
            "seed": info["seed"],
            "parameters": info["parameters"],
            "input_size": graph.size,
            "resize": info["resize"],
            "feature_layer": graph.feature_layer,
        },
        "labels": list(info["class_names"]),
        "classes": test.classes.to_json(),
        "calibration": {key: triage["calibration"][key] for key in ("temperature", "note")},
        "abstention": {
            key: triage["risk_coverage"][key] for key in ("threshold", "target", "note")
        },
        "limits": {
            "max_pixels": graph.max_pixels,
            "max_batch": graph.max_batch,
            "formats": list(graph.formats),
            # As `decoding.decode` says: training saw them so.
            "exif_orientation": "ignored",
        },
        "detection": None if graph.detection is None else graph.detection.facts(),
        "metrics": metrics,
        "remarks": [remark] if remark else [],
        "announcement": pages.announcement(manifest),
        "intended_use": INTENDED_USE,
        "audit": [audited["line"] for audited in manifest.get("audit", {}).values()],
        "run": {**manifest, "environment": environment},
        "exported": {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": run_environment.versions(),
            "git_commit": run_environment.git_commit(),
        },
    }


def write(version: Path, run: RunDirectory, fit: results.Fit, graph: Graph) -> None:
    """Writes `metadata.json`, and the run's model card where it has one.

    Args:
        version: The version's directory; see `describe` for the rest.
        run: The run.
        fit: What is exported.
        graph: How it is served.
    """
    extra = version / "assets.extra"
    files.write_json(extra / FILE_NAME, describe(run, fit, graph))
    card = run.path / "model_card.md"
    if card.exists():
        files.write_atomically(extra / card.name, card.read_bytes())
