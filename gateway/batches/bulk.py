"""What the solver is told of batches: of each open one and model how many lines are no requests yet, and what it says to that.

A batch is told at most every TELL_S; what was told last is told again whenever a solver comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from gateway.batches.opened import OpenBatch
from gateway.batches.stored import Forecast
from qlm_core.batches import Waiting
from qlm_core.messages import BulkEstimate, BulkWaiting, GatewayFact
from qlm_core.model import BatchId, Slo

TELL_S = 0.1


class Bulk:
    """The batches of one gateway, for its solver.

    Args:
        tell: passes a fact to the solver, or drops it while there is none.
        waiting: what of a batch is still to be released.
        store_s: the store's time.
    """

    def __init__(
        self,
        tell: Callable[[GatewayFact], None],
        waiting: Callable[[BatchId], tuple[Waiting, ...]],
        store_s: Callable[[], float],
    ) -> None:
        self._tell = tell
        self._waiting = waiting
        self._store_s = store_s
        self._changed: dict[BatchId, OpenBatch] = {}
        self._told: dict[BatchId, tuple[int, ...]] = {}
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Tell what has changed, for ever."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            changed, self._changed = self._changed, {}
            for batch in changed.values():
                self._tell_all(batch)
            await asyncio.sleep(TELL_S)

    def changed(self, batch: OpenBatch) -> None:
        """Something of a batch became requests, or is none any more."""
        self._changed[batch.stored.id] = batch
        self._moved.set()

    def announce(self, batches: Iterable[OpenBatch]) -> None:
        """A solver has come, which knows nothing yet."""
        self._told.clear()
        for batch in batches:
            self._tell_all(batch)

    def ended(self, batch: OpenBatch) -> None:
        """A batch is over."""
        self._changed.pop(batch.stored.id, None)
        self._tell_all(batch)
        self._told.pop(batch.stored.id, None)

    def estimated(self, batch: OpenBatch, said: BulkEstimate) -> None:
        """The solver says when a batch will be done."""
        now = time.time()
        p50_s, p90_s = said.finish_p50_s, said.finish_p90_s
        batch.forecast = Forecast(
            feasible=said.feasible,
            finish_p50_at=None if p50_s is None else int(now + p50_s),
            finish_p90_at=None if p90_s is None else int(now + p90_s),
            explanation=said.explanation,
        )
        batch.foretold.set()

    def _tell_all(self, batch: OpenBatch) -> None:
        """All models of a batch of which there is something new; no lines of what was told and is over."""
        stored = batch.stored
        lines = tuple(part.lines for part in self._waiting(stored.id))
        lines = lines or (0,) * len(stored.models)
        if not lines:
            return
        told = self._told.get(stored.id, (0,) * len(lines))
        self._told[stored.id] = lines
        arrival_s = asyncio.get_running_loop().time() - (self._store_s() - stored.arrived_at)
        for place, (count, before) in enumerate(zip(lines, told, strict=True)):
            if not count and not before:
                continue
            left = batch.left[place]
            self._tell(
                BulkWaiting(
                    batch=stored.id,
                    model=stored.models[place],
                    slo_class=stored.slo_class,
                    slo=Slo(ttft_s=stored.window_s, e2e_s=stored.window_s),
                    lines=count,
                    prompt_tokens_mean=left.prompt_tokens / max(1, count),
                    max_output_tokens=round(left.output_limits / max(1, count)),
                    arrival_s=arrival_s,
                    tenant=stored.owner,
                )
            )
