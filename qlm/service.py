"""One long-running process: its event loop, its logs, its signals, and its tie to a supervisor.

A supervised process says `ready` on its standard output once it serves, and an agent `joined` once it can be given requests.
It stops when its standard input ends, which the system does for it even when the supervisor is killed; so nothing is ever
left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from qlm import logs
from qlm_core.config import LogConfig

READY = "ready"
JOINED = "joined"
# After losing its supervisor a process has this long to stop in good order.
ORPHAN_GRACE_S = 3.0

Serve = Callable[[Callable[..., None]], Coroutine[Any, Any, None]]


def add_supervised(parser: argparse.ArgumentParser) -> None:
    """The option by which a supervisor starts a service."""
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)


def run(serve: Serve, *, log: LogConfig, supervised: bool) -> int:
    """Run `serve(ready)` until it ends, or a signal or the end of the supervisor cancels it."""
    import uvloop

    logs.configure(log)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(serve, supervised))
    finally:
        logs.standard_error().flush(logs.FLUSH_S)
    return 0


def say_joined() -> None:
    """Tell the supervisor that this agent can be given requests."""
    print(JOINED, flush=True)


async def _until_stopped(serve: Serve, supervised: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = threading.Event()

    def ready(*_: object) -> None:
        # What has been loaded stays; without this every full collection walks through all of it again.
        gc.collect()
        gc.freeze()
        if supervised:
            print(READY, flush=True)

    service = asyncio.create_task(serve(ready))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.cancel)
    if supervised:
        lifeline = threading.Thread(target=_stop_with_supervisor, args=(ended,), daemon=True)
        lifeline.start()
    try:
        await service
    except asyncio.CancelledError:
        if not service.cancelled():
            raise
    finally:
        ended.set()


def _stop_with_supervisor(ended: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if ended.is_set():
        return
    os.kill(os.getpid(), signal.SIGTERM)
    if not ended.wait(ORPHAN_GRACE_S):
        os._exit(1)
