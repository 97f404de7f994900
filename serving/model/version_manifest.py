"""How a version was made, kept beside it: command, packages, digests, and what it was checked on.

Nothing serves it: `assets.extra/metadata.json` is what who asks a server learns. `pap verify` reads
it, and `sha256sum --check SHA256SUMS` in its folder looks at every file of the version.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replication.runs import environment, results
from serving.model.graph import Graph
from serving.model.self_check import Samples
from tfds_pap import files

#: Where it lies in a version's directory.
FILE = Path("assets.extra") / "manifest.json"

PROGRAM = "serving.export"


def write(
    version: Path,
    fit: results.Fit,
    graph: Graph,
    options: Mapping[str, Any],
    places: Mapping[str, Any],
    checked: Samples,
    probabilities: np.ndarray,
) -> None:
    """Writes manifest and digests of a version that is otherwise finished.

    Args:
        version: Its directory.
        fit: What is exported.
        graph: How it is served.
        options: An `exporting.Options`.
        places: The other arguments of `exporting.export_model`.
        checked: What the version was checked on.
        probabilities: What it answered, float `[n, k]`.
    """
    arguments = [
        f"--{name}={value}" for name, value in {**options, **places}.items() if value is not None
    ]
    made = environment.describe(None, PROGRAM)
    made["command"] = f"python -m {PROGRAM} {shlex.join(arguments)}"
    made["repeat"] = {"program": PROGRAM, "arguments": arguments}
    manifest = {
        "identity": {"models": models(fit, graph)},
        "options": dict(options),
        "environment": made,
        "self_check": {
            "source": checked.source,
            "count": len(checked.images),
            # Digests, as no image of a data set and no name of one travels with a model.
            "images": digests(checked.images),
            "probabilities": probabilities.tolist(),
        },
    }
    path = version / FILE
    others = [each for each in sorted(version.rglob("*")) if each.is_file() and each != path]
    files.write_last(path, manifest, [os.path.relpath(each, path.parent) for each in others])


def models(fit: results.Fit, graph: Graph) -> dict[str, str | None]:
    """Returns the SHA-256 of the `.keras` file of each stage that a version holds.

    Args:
        fit: What is exported.
        graph: How it is served.
    """
    found = graph.detection.about["sha256"] if graph.detection else None
    return {"model": files.sha256(fit.model_path), "stage1 of detect": found}


def digests(images: Sequence[bytes]) -> list[str]:
    """Returns the SHA-256 of each image's bytes."""
    return [hashlib.sha256(data).hexdigest() for data in images]
