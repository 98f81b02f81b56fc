"""Room for connections: each takes one of the files that this process may have open."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

# For all but HTTP: connections of agents and gRPC clients, listeners, the store.
OTHER_FILES = 1024


def make_room(connections_max: int) -> None:
    """Raise the soft limit of open files as far as that many HTTP connections need, and warn where the hard one is lower.

    Beyond the limit connections are reset before anything of the gateway's could answer or log them.
    """
    needed = connections_max + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _allows(soft, needed):
        return
    allowed = needed if _allows(hard, needed) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        # Some systems have a lower bound of their own than the hard limit that they report.
        allowed = soft
    if allowed < needed:
        said = {
            "open_files": allowed,
            "needed": needed,
            "remedy": "raise the hard limit of open files or lower gateway.limits.connections_max",
        }
        log.warning("too few open files for connections_max", extra=said)


def _allows(limit: int, files: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= files
