"""The leak audit: is the same picture, or the same slide, on both sides of a split?

    python -m tfds_pap.audit --manual_dir=DIR          # DIR holds DB_3 and DB_4
    python -m tfds_pap.audit --folders=DIR             # any DIR/<class>/*
    python -m tfds_pap.audit                           # phantoms

Prints one line and a table for each data set, and writes pairs.csv, contact_sheet.png, audit.html
and audit.json. An audit that finds leaks has done its work: the exit status is 0.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from tfds_pap import cluster_flags, commands, folder_flags, path_flags

if TYPE_CHECKING:
    import distributed

    from tfds_pap import leak_audit

_MANUAL_DIR = path_flags.define(
    "manual_dir",
    None,
    "Folder that holds DB_3 and DB_4, or its URL such as s3://BUCKET/FOLDER, of which each tree is "
    "copied to this machine first (default: none, phantoms are drawn).",
    path_flags.FOLDER_OR_URL,
)
_DATA_DIR = path_flags.define(
    "data_dir",
    None,
    "Where TFDS keeps prepared data (default: TFDS's own, ~/tensorflow_datasets).",
    path_flags.STORE,
    otherwise=path_flags.PREPARED,
)
_DATASETS = flags.DEFINE_list(
    "datasets", ["pap_db3", "pap_db4"], "Data sets to audit (default: pap_db3,pap_db4)."
)
_FEATURES = path_flags.define(
    "features",
    None,
    "An .npz with ids [n] and features [n, d] of a frozen backbone, whose nearest neighbours are "
    "looked at as well (default: none).",
    path_flags.FILE,
)
_PREDICTIONS = path_flags.define(
    "predictions",
    None,
    "A run's predictions.csv: prints its accuracy with and without suspect test images "
    "(default: none).",
    path_flags.FILE,
)
_AUDIT = flags.DEFINE_enum(
    "audit",
    "full",
    ["full", "fast", "off"],
    "How hard to look: full (default), fast, or off, which looks at groups and names alone.",
)
_OUTPUT = path_flags.define(
    "output", "audit", "Where files are written (default: audit).", path_flags.NEW_FOLDER
)

flags.adopt_module_key_flags(folder_flags)
flags.adopt_module_key_flags(cluster_flags)

_KNOWN = ("pap_db3", "pap_db4")


def main(argv: list[str]) -> None:
    """Audits each data set, prints and writes what was found."""
    commands.no_arguments(argv)
    unknown = [name for name in _DATASETS.value if name not in _KNOWN]
    if unknown or not _DATASETS.value:
        raise app.UsageError(f"--datasets={','.join(_DATASETS.value)}: expected {','.join(_KNOWN)}")
    folder_flags.check(_MANUAL_DIR.value)
    one_set = folder_flags.given() or len(set(_DATASETS.value)) == 1
    if (_FEATURES.value or _PREDICTIONS.value) and not one_set:
        raise app.UsageError(
            "--features and --predictions belong to one data set: name it with --datasets"
        )

    folder_flags.announce()
    with cluster_flags.connected(_AUDIT.value != "off") as client:
        _audit(client)


def _audit(client: "distributed.Client | None") -> None:
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from tfds_pap import audit_files, leak_audit, pipeline, preparing

    if folder_flags.given():
        builders = [folder_flags.prepare(_DATA_DIR.value)]
    else:
        source = "original" if _MANUAL_DIR.value else "phantom"
        builders = [
            preparing.prepare(name, source, _MANUAL_DIR.value, _DATA_DIR.value)
            for name in dict.fromkeys(_DATASETS.value)
        ]
    for builder in builders:
        index = pipeline.read_index(builder)
        features, rows = None, None
        if _FEATURES.value:
            features = audit_files.read_features(Path(_FEATURES.value), index.ids)
        if _PREDICTIONS.value:
            classes = (index.class_names[label] for label in index.labels)
            rows = audit_files.read_predictions(
                Path(_PREDICTIONS.value), dict(zip(index.ids.tolist(), classes, strict=True))
            )
        result = leak_audit.audit_builder(
            builder, features=features, effort=_AUDIT.value, client=client
        )
        print(f"\n{result.one_line()}\n{result.blindness()}.")
        _print_counts(result)
        output = Path(_OUTPUT.value) / builder.name
        audit_files.write(result, output, builder)
        if rows is not None:
            _print_accuracy(result, rows)
        print(f"Written: {output}")


def _print_counts(result: "leak_audit.Audit") -> None:
    import rich.box
    import rich.console
    import rich.table

    summary = result.summary()
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("pairs")
    for heading in summary["pairs"]["near-duplicate"]:
        table.add_column(heading, justify="right")
    for kind, counts in summary["pairs"].items():
        table.add_row(kind, *("unknown" if n is None else f"{n:,}" for n in counts.values()))
    console = rich.console.Console()
    console.print(table)
    for split, classes in summary["suspect images"].items():
        counts = ", ".join(f"{name} {count}" for name, count in classes.items()) or "none"
        console.print(f"suspect {split} images: {counts}", highlight=False)


def _print_accuracy(result: "leak_audit.Audit", rows: list[tuple[str, bool]]) -> None:
    """Accuracy of a predictions file with and without suspect test images.

    It has no interval here: images of one slide or field are not independent, and how sure a share
    of groups is, is told by the report of the run.
    """
    suspect = result.suspects([image for image, _ in rows])
    for name, kept in (
        ("all test images", rows),
        ("without suspect ones", [row for row in rows if row[0] not in suspect]),
    ):
        right, count = sum(correct for _, correct in kept), len(kept)
        if not count:
            print(f"accuracy, {name}: not defined, no image is left")
            continue
        print(f"accuracy, {name}: {right / count:.4f} ({right} of {count}; no interval)")


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
