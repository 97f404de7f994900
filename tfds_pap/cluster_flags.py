"""The flag --cluster, which several commands have."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from tfds_pap import cluster

if TYPE_CHECKING:
    import distributed


class _ClusterParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        if fault := cluster.fault(argument):
            raise ValueError(fault)
        return argument

    def flag_type(self) -> str:
        return "local, address or path"


_CLUSTER = flags.DEFINE(
    _ClusterParser(),
    "cluster",
    None,
    "Where blocks of work are computed: local (a process with one thread for each core of this "
    "machine), the address of a Dask scheduler, or a scheduler file (default: this process).",
)


def given() -> bool:
    """Returns whether --cluster is given."""
    return _CLUSTER.value is not None


@contextlib.contextmanager
def connected(wanted: bool = True) -> Iterator["distributed.Client | None"]:
    """Gives the client of --cluster, or None where it is not given.

    Commands ask for it before they import TensorFlow: that no scheduler answers is said at once.

    Args:
        wanted: False where nothing will be computed.

    Raises:
        PapError: If Dask is not installed, or no scheduler answers.
    """
    if not wanted or _CLUSTER.value is None:
        yield None
        return
    with cluster.connected(_CLUSTER.value) as client:
        print(cluster.words(client), flush=True)
        yield client
