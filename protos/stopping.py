"""How parts stop: the words by which one tells its peers so, and whether the present task is being stopped.

The latter is asked by loops that dial again whatever happens to a call. gRPC turns a cancellation that meets the beginning of a
call into another error, and cancels whoever reads a call when only the call was cancelled. So what is raised does not tell a loop
whether to go on.
"""

from __future__ import annotations

import asyncio

import grpc

# How a gateway ends the streams of its agents when it stops in good order.
GATEWAY_STOPS = "the gateway is shutting down"


# What gRPC says to who is writing when the other end ends a stream, whatever that says itself.
_ENDED_WHILE_WRITTEN = "Internal error from Core"


def said_so(error: BaseException) -> bool:
    """Whether a stream broke since the gateway at its other end stops in good order, as far as that was heard.

    Where it did not, and the gateway is lost, the next attempts to reach it tell.
    """
    words = (GATEWAY_STOPS, _ENDED_WHILE_WRITTEN)
    return isinstance(error, grpc.aio.AioRpcError) and error.details() in words


def being_stopped() -> bool:
    """Whether it is this task that is cancelled, and not only a call of it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_if_stopped() -> None:
    """Raise CancelledError if this task is being stopped."""
    if being_stopped():
        raise asyncio.CancelledError
