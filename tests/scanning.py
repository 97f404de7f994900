"""Scans whole fields as the command does, in this process."""

from replication.fields import scan_directory, whole_fields
from replication.runs import device


def scan(run, paths, scan_dir, *, client=None, complete_truth=False, **changed):
    """Returns the outcome; one run has both models, and `changed` are settings."""
    return whole_fields.scan_and_report(
        scan_dir,
        whole_fields.Models(run, run),
        [str(path) for path in paths],
        settings=scan_directory.Settings(**{"threshold": 0.4, **changed}),
        policy=device.configure(),
        workers=2 if client is None else 1,
        complete_truth=complete_truth,
        client=client,
    )
