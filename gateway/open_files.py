"""Room for connections: each takes one of the files that this process may have open."""

from __future__ import annotations

import logging
import resource
from typing import NamedTuple

log = logging.getLogger(__name__)

# For all but the connections of clients and agents: those beyond the limit, listeners, the store, the solver.
OTHER_FILES = 512


class Room(NamedTuple):
    """How many connections of each kind there is room for."""

    http: int
    grpc: int


def make_room(http_max: int, grpc_max: int) -> Room:
    """Raise the soft limit of open files as far as so many connections need.

    Where the hard limit is lower, both kinds get their share of what there is, and a warning says so: beyond the limit of
    files connections are reset before anything of the gateway's could answer or log them.
    """
    needed = http_max + grpc_max + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _allows(soft, needed):
        return Room(http_max, grpc_max)
    allowed = needed if _allows(hard, needed) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        # Some systems have a lower bound of their own than the hard limit that they report.
        allowed = soft
    if allowed >= needed:
        return Room(http_max, grpc_max)
    share = max(0.5, 1.0 - OTHER_FILES / allowed) * allowed / (http_max + grpc_max)
    room = Room(max(1, int(http_max * share)), max(1, int(grpc_max * share)))
    said = {
        "open_files": allowed,
        "needed": needed,
        "http_connections": room.http,
        "grpc_connections": room.grpc,
        "remedy": "raise the hard limit of open files or lower gateway.limits.connections_max",
    }
    log.warning("too few open files for connections_max", extra=said)
    return room


def _allows(limit: int, files: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= files
