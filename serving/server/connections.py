"""How many connections may be open at the same time, over HTTP and gRPC together."""

import resource

#: Descriptors that are no connection: files of models, sockets that are being accepted, a margin.
RESERVED = 96

#: Connections that wait to be accepted, which is as many as are accepted at once.
BACKLOG = 32

#: What is wanted where the system gives it.
WANTED = 1024


def limit(wanted: int | None = None) -> int:
    """Raises the soft limit of descriptors as far as needed, and returns what fits into it.

    Args:
        wanted: Connections; None for `WANTED`.

    Returns:
        Connections of each of the two fronts, 8 at least.
    """
    wanted = WANTED if wanted is None else wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(8, min(wanted, (soft - RESERVED) // 2))
