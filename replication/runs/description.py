"""What a run's manifest says of its images, their roles and their twins."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets.public_api as tfds

from replication.drawing import shown
from replication.measures import evaluation, published
from replication.runs import environment as run_environment
from replication.runs import provenance
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import audit_page, leak_audit, pipeline, roles

if TYPE_CHECKING:
    import distributed

#: Said where a backbone has random weights.
UNTRAINED = "The backbone is not trained (random weights): no figure says anything about it."


def describe(
    run: RunDirectory,
    builders: Mapping[int, tfds.core.DatasetBuilder],
    policy: DevicePolicy,
    *,
    program: str = "replication.run",
    images: published.Source | None = None,
    remarks: Sequence[str] = (),
    assigned: Mapping[str, roles.Roles] | None = None,
    blocks: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes what is run on what into the manifest.

    Args:
        run: The run.
        builders: Prepared builder of each stage.
        policy: The device policy in force.
        program: The module that was run.
        images: Whose they are by declaration: "original", "stand-in", or None.
        remarks: Sentences that belong above every figure, such as `UNTRAINED`.
        assigned: Roles by protocol; those of `roles.assign_roles` in both protocols if None.
        blocks: What roles keep together, by data set and id.

    Raises:
        PapError: If the declaration contradicts what is published.
    """
    source, announcement = provenance.source(builders, images)
    data = run.manifest().get("data", {})
    for stage, builder in builders.items():
        index = pipeline.read_index(builder)
        by_protocol = assigned or {
            protocol: roles.assign_roles(
                index, protocol, stage=stage, blocks=(blocks or {}).get(builder.name)
            )
            for protocol in roles.PROTOCOLS
        }
        lacks = [
            f"{builder.name}, {protocol} protocol: {line}"
            for protocol, cut in by_protocol.items()
            for line in roles.lacking(index, cut)
        ]
        for line in lacks:
            print(f"Note: {line}")
        described = describe_images(builder, index)
        data[builder.name] = described | {
            "notes": [*described["notes"], *lacks],
            "roles": {
                protocol: {role: class_counts(index, rows) for role, rows in cut.items()}
                for protocol, cut in by_protocol.items()
            },
        }
    run.update_manifest(
        source=source,
        announcement=" ".join(filter(None, [announcement, *remarks])),
        environment=run_environment.describe(policy, program),
        data=data,
    )


def describe_images(builder: tfds.core.DatasetBuilder, index: pipeline.Index) -> dict[str, Any]:
    """Returns what a manifest says of a data set: fingerprint, notes, counts, groups.

    Args:
        builder: A prepared builder.
        index: Of the same builder.
    """
    return {
        "fingerprint": builder.info.metadata["fingerprint"],
        "notes": list(builder.info.metadata["notes"]),
        "counts": {
            split: class_counts(index, np.flatnonzero(index.splits == split))
            for split in sorted(builder.info.splits)
        },
        "groups": len(set(index.groups) - {""}),
    }


def class_counts(index: pipeline.Index, positions: np.ndarray) -> dict[str, int]:
    """Counts the images of every class.

    Args:
        index: What is known of the images.
        positions: Which of them.
    """
    counts = np.bincount(index.labels[positions], minlength=len(index.class_names))
    return dict(zip(index.class_names, counts.tolist(), strict=True))


def audit(
    run: RunDirectory,
    builders: Iterable[tfds.core.DatasetBuilder],
    effort: str = "fast",
    notes: Callable[[Mapping[str, leak_audit.Audit]], Sequence[str]] = lambda audits: (),
    client: "distributed.Client | None" = None,
) -> dict[str, leak_audit.Audit]:
    """Looks for leaks in each data set and writes what it found to the run.

    Args:
        run: Its manifest gets `audit`: data set -> line and counts; `audit.html` shows the pairs.
        builders: Prepared builders.
        effort: One of `leak_audit.EFFORTS`.
        notes: What is done about what was found, in words; printed, and part of the lines.
        client: See `leak_audit.audit_builder`.

    Returns:
        What was found, by name of the data set.
    """
    builders = list(builders)
    audits = {
        one.name: leak_audit.audit_builder(one, effort=effort, client=client) for one in builders
    }
    summaries = {name: one.summary() for name, one in audits.items()}
    for name, summary in summaries.items():
        for line in notes({name: audits[name]}):
            print(f"Note: {line}")
            summary["line"] += f". {line[0].upper()}{line[1:]}"
    run.update_manifest(audit={**run.manifest().get("audit", {}), **summaries})
    audit_page.write(run.path / audit_page.NAME, [(audits[one.name], one) for one in builders])
    return audits


def accuracy_without_suspects(
    predictions: Sequence[evaluation.Predictions], audit: leak_audit.Audit
) -> str:
    """Says what is left of an accuracy without test images that have a twin in training.

    Args:
        predictions: Of one role, one a seed, on the same images.
        audit: Of their data set.

    Returns:
        A line; "" where no image is suspect.
    """
    suspects = audit.suspects(predictions[0].ids)
    if not suspects:
        return ""
    kept = [row for row, image in enumerate(predictions[0].ids) if image not in suspects]
    if not kept:
        return f"all {len(predictions[0])} test images have a twin, or their group, in training"
    ids = {predictions[0].ids[row] for row in kept}
    rest = evaluation.summarise_seeds(
        [one.take([row for row, i in enumerate(one.ids) if i in ids]) for one in predictions]
    )["accuracy"]
    return (
        f"without suspect test images ({len(suspects)}, with a twin or their group in training): "
        f"{rest.mean:.4f} [{shown.ends(rest.low, rest.high)}] on {len(kept)} images"
    )
