"""What commands do in several steps, as one call for a notebook; see `replication`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import cast

import numpy as np

from replication.comparison import pairs
from replication.comparison.candidates import Candidate
from replication.fields.find import scanner
from replication.fields.find.dense import Stage1
from replication.fields.find.stages import Stage2, Stages
from replication.fields.read import reader
from replication.fields.read.field import ArrayField
from replication.fields.scan_directory import Settings
from replication.measures.predictions import Predictions
from replication.naming.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What `pairs.pairwise` reads of a candidate."""

    name: str
    runs: tuple[Predictions, ...]


def compare_models(
    predictions: Mapping[str, Predictions | Sequence[Predictions]], **options: float
) -> list[pairs.Pair]:
    """Compares every two models on the test images that all of them were scored on.

    Args:
        predictions: By name; one a seed, in the same order of seeds for all models. Of each the
            test role counts.
        **options: `confidence`, `resamples` and `seed` of `pairs.pairwise`.

    Returns:
        One for every two models: McNemar's test corrected by Holm, the difference of accuracy with
        its interval, and whether both tell the two apart.

    Raises:
        ValueError: If they were scored on different images or with different numbers of seeds.

    Example:
        >>> builder = replication.prepare_images("pap_db4", "original", "drawn", "prepared")
        >>> spec = replication.feature_spec("mobilenetv2_035", source="none", size=32)
        >>> store = replication.extract_features(builder, spec)
        >>> head = replication.train_head(store)
        >>> [pair] = replication.compare_models({"one": head, "the same": head})
        >>> pair.first, pair.accuracy.value, pair.told_apart
        ('one', 0.0, False)
    """
    scored = []
    for name, runs in predictions.items():
        of_seeds = [runs] if isinstance(runs, Predictions) else runs
        scored.append(_Scored(name, tuple(run.select("test") for run in of_seeds)))
    return pairs.pairwise(cast("list[Candidate]", scored), **options)  # type: ignore[arg-type]


def scan_field(
    models: Mapping[int, TrainedModel],
    field: np.ndarray | str | os.PathLike,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
) -> scanner.FieldScan:
    """Finds and names the cells of a whole field, as `replication.scan` does.

    Args:
        models: From `load_models`, of both stages.
        field: Pixels, uint8 RGB `[height, width, 3]`, or the path of an image or slide.
        settings: ROI, stride, threshold and so on; None takes the defaults of the command.
        workers: Threads; None takes one a core.

    Raises:
        FieldError: If the field cannot be read.
        PapError: If a model is not of its stage.

    Example:
        >>> models = replication.load_models("runs/phantom")
        >>> pixels = np.full((300, 400, 3), 230, np.uint8)
        >>> scan = replication.scan_field(models, pixels)
        >>> scan.scores.shape, len(scan.cells) <= scan.detections
        ((7, 11), True)
    """
    chosen = settings or Settings()
    finder, namer = models[1], models[2]
    stages = Stages(
        Stage1(
            finder.network,
            finder.fit.info["resize"],
            roi=chosen.roi,
            stride=chosen.stride,
            method=chosen.method,
        ),
        Stage2(namer.network, namer.fit.info["resize"], namer.decision, roi=chosen.roi),
        about={},
    )
    opened = (
        ArrayField("field", field)
        if isinstance(field, np.ndarray)
        else reader.open_field(str(Path(field)), mpp=chosen.mpp, file_mpp=chosen.file_mpp)
    )
    with opened, futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return scanner.scan(
            opened, stages, threshold=chosen.threshold, radius=chosen.radius, pool=pool
        )
