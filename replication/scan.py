"""Reads whole fields in two stages, as the papers describe it and their scripts never did.

    python -m replication.scan --stage1=RUN --stage2=RUN field.jpg slide.svs folder/
    python -m replication.scan --stage1=RUN --stage2=RUN --phantom
    python -m replication.scan --stage1=RUN --slides=list.csv --cluster=local
    python -m replication.scan --stage1=RUN s3://BUCKET/slide.svs s3://BUCKET/folder

An ROI slides over the field; stage 1 keeps those with a cell in their middle; of kept ones that lie
together the most probable stays; stage 2 names it. Running the same command again resumes.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import fields as field_flags
from replication.flags import shared
from replication.runs import device
from tfds_pap import cluster_flags, commands, path_flags, taxonomy, urls
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

_PHANTOM, _PHANTOM_FIELDS = shared.phantom(
    "Scan fields that are drawn on the spot, with their truth (default: off).", 3
)
_SCAN_DIR = path_flags.define(
    "scan_dir",
    None,
    "Where the scan is written (default: runs/scan, runs/scan_phantom).",
    path_flags.NEW_FOLDER,
    otherwise="runs",
)
_STRIDE = shared.stride("Pixels from one ROI to the next (default: 25).")
_ROI = flags.DEFINE_integer(
    "roi",
    taxonomy.ROI_SIZE,
    f"Side of the ROI in pixels (default: {taxonomy.ROI_SIZE}).",
    lower_bound=1,
)
_THRESHOLD = shared.threshold(
    "Stage-1 probability of a cell, 0 to 1, at which an ROI is kept (default: 0.5)."
)
_SUPPRESSION_RADIUS = shared.suppression_radius(
    "Of kept ROIs nearer than this to each other only the most probable stays, pixels (default: "
    "50)."
)
_METHOD = flags.DEFINE_enum(
    "method",
    "exact",
    ["exact", "fast", "crops"],
    "Stage 1 convolves the field once per sub-pixel phase, with the scores of single ROIs (exact, "
    "default); or once, with those of the nearest window (fast: changes decisions, see README); or "
    "scores ROIs one by one in batches (crops).",
)
_MPP = flags.DEFINE_float(
    "mpp",
    None,
    "Micrometres per pixel that the models were trained at; a field whose file states another "
    "pixel size is rescaled (default: every pixel of the file is read as it is).",
)
_FIELD_MPP = flags.DEFINE_float(
    "field_mpp", None, "Micrometres per pixel of files that do not state it (default: not known)."
)
_SKIP_GLASS = flags.DEFINE_bool(
    "skip_glass",
    False,
    "Leave out ROIs without stain, told by a picture of one pixel for 8 x 8 of the field; what is "
    "paler than pale cytoplasm is not read (default: off).",
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Threads that read and scan (default: one a core).", lower_bound=1
)

_SLIDES = path_flags.define(
    "slides",
    None,
    "CSV of slides to read, with a column slide of paths or URLs such as s3://BUCKET/a.svs; paths "
    "without a leading / lie beside the CSV (default: none).",
    path_flags.FILE,
)

_DRY_RUN = shared.dry_run("fields")

flags.adopt_module_key_flags(field_flags)
flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Loads both stages, scans the fields, measures them against truth, writes the report."""
    if _PHANTOM.value + bool(_SLIDES.value) + (len(argv) > 1) != 1:
        raise app.UsageError(
            "expected fields (field.jpg slide.svs folder/ ...), --slides, or --phantom"
        )
    for flag in (_MPP, _FIELD_MPP):
        field_flags.check_positive(flag)
    match_radius = field_flags.match_radius()
    arguments = urls.listed(Path(_SLIDES.value), "slide") if _SLIDES.value else argv[1:]
    for argument in filter(urls.is_url, arguments):
        urls.check(argument)
    start = time.perf_counter()
    with cluster_flags.connected(not _DRY_RUN.value) as client:
        _scan(arguments, match_radius, start, client)


def _scan(
    arguments: list[str],
    match_radius: float | None,
    start: float,
    client: "distributed.Client | None",
) -> None:
    commands.prepare_tensorflow()
    from replication.fields import forecast, scan_directory, whole_fields

    directory = Path(_SCAN_DIR.value or ("runs/scan_phantom" if _PHANTOM.value else "runs/scan"))
    models = whole_fields.Models(**field_flags.models())
    policy = device.configure(precision="float32")
    settings = scan_directory.Settings(
        roi=_ROI.value,
        stride=_STRIDE.value,
        threshold=_THRESHOLD.value,
        radius=_SUPPRESSION_RADIUS.value,
        method=_METHOD.value,
        mpp=_MPP.value,
        file_mpp=_FIELD_MPP.value,
        skip_glass=_SKIP_GLASS.value,
    )
    phantoms = _PHANTOM_FIELDS.value if _PHANTOM.value else 0
    workers, truth = _WORKERS.value or os.cpu_count() or 1, field_flags.truth()
    if _DRY_RUN.value:
        forecast.forecast(
            directory,
            models,
            arguments,
            settings=settings,
            phantoms=phantoms,
            workers=workers,
            truth=truth,
        )
        return
    outcome = whole_fields.scan_and_report(
        directory,
        models,
        arguments,
        settings=settings,
        policy=policy,
        phantoms=phantoms,
        workers=workers,
        truth=truth,
        complete_truth=field_flags.complete_truth() or _PHANTOM.value,
        match_radius=match_radius,
        client=client,
    )
    seconds, memory = time.perf_counter() - start, device.peak_memory_mib()
    print(f"{outcome.fields} fields, {seconds:.0f} s, peak memory {memory:,.0f} MiB")
    print(f"Report: {outcome.page}")
    if outcome.unreadable:
        lines = [f"  {entry['reason']}" for entry in outcome.unreadable]
        count = outcome.fields + len(lines)
        raise PapError(
            f"{len(lines)} of {count} fields could not be read:\n" + "\n".join(lines[:20])
        )


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
