"""Everything that a version's directory holds."""

from pathlib import Path

from replication.runs import results
from replication.runs.directory import RunDirectory
from serving.model import metadata, warmup, warmup_requests
from serving.model.graph import Graph


def write_version(
    folder: Path, run: RunDirectory, fit: results.Fit, graph: Graph, model_name: str
) -> None:
    """Writes the SavedModel, what it says of itself, and the requests that warm it up.

    Args:
        folder: An empty directory.
        run: The run of the fit.
        fit: What is exported.
        graph: How it is served.
        model_name: Name that it is served under.
    """
    graph.save(folder)
    metadata.write(folder, run, fit, graph)
    warmup.write(folder / warmup.FILE, warmup_requests.requests(graph, model_name, fit.stage))
