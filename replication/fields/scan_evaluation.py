"""Measures the fields of a scan directory that have truth, and writes what came of it."""

from replication.fields.find.lattice import Lattice
from replication.fields.judge.counts import LOWEST, AnnotatedField, Detections
from replication.fields.judge.evaluation import evaluate
from replication.fields.judge.results import Evaluation
from replication.fields.judge.truth import Nuclei, read_nuclei
from replication.fields.scanned import EVALUATION, ScannedField, scanned_fields
from replication.fields.show import figures as field_figures
from replication.fields.show import truth_layer
from replication.runs.directory import RunDirectory
from tfds_pap import copies, files, tables


def evaluate_scan(
    run: RunDirectory, *, complete: bool, match_radius: float | None = None
) -> Evaluation | None:
    """Measures a scan, and writes evaluation.json, its figures and the viewer's layers of truth.

    A field is annotated if the file of its truth has a line for it; others are left out.

    Args:
        run: A scan directory whose fields are finished.
        complete: Whether every cell of the annotated fields is annotated.
        match_radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.

    Returns:
        The evaluation; None where no field is annotated, and then nothing is left in the directory
        from an evaluation before.

    Raises:
        PapError: If a file of truth cannot be used.
    """
    fields = []
    for one, annotated in annotated_fields(run):
        if annotated is None:
            (one.folder / truth_layer.NAME).unlink(missing_ok=True)
        else:
            threshold = run.manifest()["settings"]["threshold"]
            truth_layer.write(one.folder, annotated, threshold, match_radius)
            fields.append(annotated)
    if not fields:
        for name in (EVALUATION, *(f"{name}.svg" for name in field_figures.NAMES)):
            (run.path / name).unlink(missing_ok=True)
        return None
    evaluation = evaluate(
        fields,
        threshold=run.manifest()["settings"]["threshold"],
        complete=complete,
        match_radius=match_radius,
    )
    for name, picture in field_figures.pictures(evaluation).items():
        files.write_atomically(run.path / f"{name}.svg", picture)
    files.write_json(run.path / EVALUATION, evaluation.json())
    return evaluation


def annotated_fields(run: RunDirectory) -> list[tuple[ScannedField, AnnotatedField | None]]:
    """Returns every field of a scan, and the same with its truth; None where it has none.

    Args:
        run: A scan directory whose fields are finished.

    Raises:
        PapError: If a file of truth cannot be used.
    """
    settings = run.manifest()["settings"]
    truths: dict[str, dict[str, Nuclei]] = {}
    fields: list[tuple[ScannedField, AnnotatedField | None]] = []
    for one in scanned_fields(run):
        path, nuclei = one.info["truth"], None
        if path is not None:
            if path not in truths:
                truths[path] = read_nuclei(copies.file(path), one.classes)
            nuclei = truths[path].get(tables.bare_name(one.info["name"]))
        annotated = None
        if nuclei is not None:
            annotated = _annotated(one, nuclei, settings["threshold"], settings["radius"])
        fields.append((one, annotated))
    return fields


def _annotated(
    one: ScannedField, nuclei: Nuclei, threshold: float, radius: float
) -> AnnotatedField:
    lattice, scale = Lattice(**one.info["lattice"]), one.info["scale"]
    detections = Detections.of_scores(
        one.scores, lattice, threshold=min(LOWEST, threshold), radius=radius, scale=scale
    )
    return AnnotatedField(one.info["name"], detections, nuclei, lattice, scale, one.cells)
