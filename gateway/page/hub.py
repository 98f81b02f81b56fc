"""Keeps the page up to date: asks the solver once for all who look on, and only while somebody does.

A viewer who reads slowly misses steps and is told the whole again, so nothing waits in memory for anybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway import openai
from gateway.answer import Json
from gateway.keys import Caller
from gateway.page.digest import Digester, changes, groups_max, of_tenant
from gateway.page.stories import Stories
from gateway.page.tally import WINDOW_S, Tally
from qlm_core.config import Config
from qlm_core.errors import QlmError, QueueFull, kind_and_place
from qlm_core.ledger import Row

log = logging.getLogger(__name__)

# The page takes at most this share of the gateway's time, and of the solver's.
_BUSY_SHARE = 0.1
_RETRY_AFTER_S = 5.0
# Batches and what is kept of them lie in the store, and change slowly.
_BATCHES_EVERY_S = 2.0
_UNREADABLE = "what it says cannot be shown; the gateway's log says why"
# Whose key sees everything.
_EVERYBODY = ""


class Solver(Protocol):
    """What the page asks of the solver."""

    async def view(self, *, groups_max: int = 0) -> bytes:
        """As `SolverLink.view`."""


class Channel:
    """What those who may see the same are told.

    Attributes:
        version: counts what was said.
    """

    def __init__(self) -> None:
        self.version = 0
        self.viewers = 0
        self._said: Json = {}
        self._clock: Json = {}
        self._change = b""
        self._whole: bytes | None = None

    def say(self, digest: Json, clock: Json) -> None:
        """Something new, or at least the time."""
        said = changes(self._said, digest) | clock
        self._said = digest
        self._change = _event("change", said)
        self._whole = None
        self._clock = clock
        self.version += 1

    def since(self, version: int) -> bytes:
        """What to tell whoever was told `version` last; 0: nothing yet."""
        if version == self.version - 1 and version > 0:
            return self._change
        if self._whole is None:
            self._whole = _event("whole", self._said | self._clock)
        return self._whole


class Hub:
    """The page's side of one gateway.

    Args:
        batches: the last batches, as clients see them.
        rows: the open requests of a tenant.
        now_s: the ledger's clock.
    """

    def __init__(
        self,
        config: Config,
        *,
        solver: Solver,
        batches: Callable[[], Awaitable[list[Json]]],
        rows: Callable[[Caller], Iterator[Row]],
        tally: Tally,
        stories: Stories,
        now_s: Callable[[], float],
    ) -> None:
        self._section = config.gateway.ui
        self._classes = _targets(config)
        self._gateway = config.gateway.id
        self._solver = solver
        self._batches_of = batches
        self._rows = rows
        self._tally = tally
        self.stories = stories
        self._now_s = now_s
        self._digester = Digester()
        for name in config.models:
            self._digester.models.number(name)
        for name in config.slo_classes:
            self._digester.classes.number(name)
        # Of nothing, until the solver has said something.
        self._digest: Json = self._digester.digest({}, now_s()) | {"solver": False}
        self._channels: dict[str, Channel] = {}
        self._callers: dict[str, Caller] = {}
        self._agents = 1
        self._batches: list[Json] = []
        self._batches_at_s = float("-inf")
        # Whether the last look ended in an error that was logged.
        self._failed = False
        self._told = asyncio.Event()
        self._watched = asyncio.Event()
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many look on."""
        return sum(channel.viewers for channel in self._channels.values())

    @contextmanager
    def watching(self, caller: Caller) -> Iterator[AsyncIterator[bytes]]:
        """Events for one who looks on, until the gateway stops. Raises QueueFull."""
        if self.viewers >= self._section.viewers_max:
            raise QueueFull("gateway.ui.viewers_max", self._section.viewers_max, _RETRY_AFTER_S)
        key = _EVERYBODY if caller.operator else f"tenant {caller.tenant}"
        channel = self._channels.setdefault(key, Channel())
        self._callers[key] = caller
        channel.viewers += 1
        self._watched.set()
        try:
            yield self._events(channel)
        finally:
            channel.viewers -= 1
            if not channel.viewers:
                del self._channels[key], self._callers[key]
            if not self._channels:
                self._watched.clear()

    async def run(self) -> None:
        """Tell viewers what is new, until cancelled."""
        while True:
            await self._watched.wait()
            began_s = time.monotonic()
            try:
                await self._renew()
                self._failed = False
            except QlmError as error:
                self._digest = self._digest | {"solver": False, "reason": str(error)}
            except Exception as error:  # the page must not end the gateway
                self._digest = self._digest | {"solver": False, "reason": _UNREADABLE}
                if not self._failed:
                    log.error("the page cannot be renewed", extra={"reason": kind_and_place(error)})
                self._failed = True
            self._tell()
            took_s = time.monotonic() - began_s
            await asyncio.sleep(max(self._section.refresh_s, took_s / _BUSY_SHARE))

    def close(self) -> None:
        """The gateway stops: nobody is told anything any more."""
        self._closed = True
        self._wake()

    async def _renew(self) -> None:
        data = await self._solver.view(groups_max=groups_max(self._agents))
        now_s = self._now_s()
        view = openai.parse(data)
        self._agents = len(view.get("agents", ()))
        self._digest = self._digester.digest(view, now_s)
        if now_s - self._batches_at_s >= _BATCHES_EVERY_S:
            self._batches_at_s = now_s
            self._batches = await self._batches_of()

    def _tell(self) -> None:
        clock = {"now": round(self._now_s(), 2), "unix": round(time.time(), 1)}
        tally = self._tally.classes()
        known = {
            "gateway": self._gateway,
            "targets": self._classes,
            "refresh_s": self._section.refresh_s,
        }
        for key, channel in self._channels.items():
            if key == _EVERYBODY:
                more = {
                    "operator": True,
                    "tally": tally,
                    "tally_s": WINDOW_S,
                    "batches": self._batches,
                }
                channel.say(self._digest | known | more, clock)
            else:
                yours = _counted(self._rows(self._callers[key]))
                channel.say(of_tenant(self._digest, yours) | known | {"operator": False}, clock)
        self._wake()

    def _wake(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    async def _events(self, channel: Channel) -> AsyncIterator[bytes]:
        version = 0
        while not self._closed:
            if channel.version == version:
                await self._told.wait()
                continue
            event = channel.since(version)
            version = channel.version
            yield event


def _targets(config: Config) -> Json:
    return {
        name: {"ttft_s": one.ttft_s, "tpot_s": one.tpot_s, "e2e_s": one.e2e_s, "weight": one.weight}
        for name, one in config.slo_classes.items()
    }


def _counted(rows: Iterator[Row]) -> Json:
    counts = {"waiting": 0, "pulled": 0, "running": 0}
    for row in rows:
        if row.phase.value in counts:
            counts[row.phase.value] += 1
    return counts


def _event(name: str, said: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), openai.encode(said))
