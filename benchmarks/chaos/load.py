"""The load of one run: a few clients of each kind, each with one request at a time, and probes that say when service is whole."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from math import inf

from benchmarks.chaos.bed import until
from benchmarks.chaos.clients import Asked, Clients, Fate, Kind

# Of the answers, in turn: short ones end while a fault lasts, long ones are in the middle when it comes.
_TOKENS = (10, 40, 20, 100)
_THINK_S = 0.05
_PROBE_TOKENS = 3
_PROBE_AGAIN_S = 0.2
_PROBE_AGAIN_S_MAX = 3.0


class Load:
    """Keeps clients busy until it is told to stop.

    Args:
        name: begins the names of its requests, which no other load may have.
        of_each: clients of each kind.

    Attributes:
        asked: every request so far, probes included.
    """

    def __init__(self, clients: Clients, name: str, *, of_each: int = 2) -> None:
        self.asked: list[Asked] = []
        self._name = name
        self._clients = clients
        self._of_each = of_each
        self._numbers = itertools.count(1)
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []
        self._probes: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._workers = [
            asyncio.create_task(self._work(kind, first))
            for kind in Kind
            for first in range(self._of_each)
        ]

    async def flowing(self) -> None:
        """Wait until requests of every kind have finished and others are in the middle."""
        await until(lambda: all(self._answered(kind) for kind in Kind))

    async def recovered(self, patience_s: float) -> float:
        """Seconds from now until a fresh request of each kind was answered; infinite after `patience_s`.

        A new one of each kind is sent again and again, more and more rarely, since an earlier one may hang.
        """
        probed = [kind for kind in Kind if kind.probes]
        again_s = _PROBE_AGAIN_S
        began_s = time.monotonic()
        first = len(self.asked)
        try:
            async with asyncio.timeout(patience_s):
                while missing := [kind for kind in probed if not self._answered(kind, first)]:
                    self._probes += [asyncio.create_task(self._probe(kind)) for kind in missing]
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(again_s):
                            await until(lambda: all(self._answered(k, first) for k in probed))
                    again_s = min(1.5 * again_s, _PROBE_AGAIN_S_MAX)
        except TimeoutError:
            return inf
        return time.monotonic() - began_s

    def _answered(self, kind: Kind, first: int = 0) -> bool:
        """Whether a request of this kind, not one before the `first`, has finished; for a first above 0 a probe."""
        return any(
            one.kind is kind
            and one.fate is Fate.FINISHED
            and (not first or one.tokens == _PROBE_TOKENS)
            for one in self.asked[first:]
        )

    async def stop(self, patience_s: float) -> None:
        """Ask nothing new, and wait for what is open, as long as patience lasts."""
        self._stopping = True
        tasks = [*self._workers, *self._probes]
        self._workers, self._probes = [], []
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=patience_s)
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome

    async def _work(self, kind: Kind, first: int) -> None:
        lengths = itertools.cycle(_TOKENS[first % 4 :] + _TOKENS[: first % 4])
        while not self._stopping:
            await self._ask(kind, next(lengths), "load")
            await asyncio.sleep(_THINK_S)

    async def _probe(self, kind: Kind) -> None:
        await self._ask(kind, _PROBE_TOKENS, "probe")

    async def _ask(self, kind: Kind, tokens: int, why: str) -> None:
        name = f"{self._name}: {why} {next(self._numbers)} {kind.value}"
        asked = Asked(kind=kind, name=name, tokens=tokens)
        self.asked.append(asked)
        await self._clients.follow(asked)
