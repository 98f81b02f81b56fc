"""The LoRA adapters of one vLLM server: each is loaded before its first job, and unloaded when too many are.

Loading takes some ten milliseconds and disturbs nobody, so it happens when a job asks for it, one adapter at a time in the
order of their jobs. Beyond the bound the one that was used longest ago makes room, among those that no job is on: a job
that is on its way to the server while its adapter is unloaded would be refused as one of an unknown model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from agents.engines.base import Listener
from agents.engines.connection import Connection
from agents.engines.faults import unsaid
from agents.engines.reading import End
from qlm_core.errors import QlmError
from qlm_core.executor import JobLost, SwapFailed
from qlm_core.executor.events import EngineEvent
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId

log = logging.getLogger("qlm.engine")

# How vLLM refuses to load an adapter that it has.
_ALREADY_LOADED = "already been loaded"

Order = Callable[[str, dict[str, str]], Awaitable[None]]
"""Posts a body to a path of the server. Raises QlmError if that is not done."""


class Adapters:
    """Jobs to one server by way of the adapters that they need. Jobs of the base itself pass at once.

    Args:
        paths: where each adapter lies.
        loaded_max: how many may be loaded; more are only while jobs run on all of them.

    Attributes:
        load_s: how long the last one took; 0 before the first.
    """

    def __init__(
        self, connection: Connection, order: Order, paths: dict[ModelName, str], *, loaded_max: int
    ) -> None:
        self.load_s = 0.0
        self._connection = connection
        self._order = order
        self._paths = paths
        self._loaded_max = loaded_max
        self._listener: Listener | None = None
        # Used longest ago first.
        self._loaded: OrderedDict[ModelName, None] = OrderedDict()
        self._loading: dict[ModelName, asyncio.Task[None]] = {}
        self._waiting: dict[RequestId, tuple[Payload, int]] = {}
        self._running: dict[RequestId, tuple[int, ModelName]] = {}
        self._turn = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def open(self, listener: Listener) -> None:
        """The server has started: nothing is loaded."""
        self._forget()
        self._listener = listener
        self._connection.open(self._hear if self._paths else listener)

    async def close(self) -> None:
        """Drop all jobs without a word and hang up."""
        self._forget()
        await self._connection.close()

    def submit(self, job: Payload, priority: int) -> None:
        """Start a job, once its adapter is there."""
        if job.model in self._paths and job.model not in self._loaded:
            self._waiting[job.id] = job, priority
            if job.model not in self._loading:
                self._loading[job.model] = asyncio.create_task(self._load(job.model))
            return
        if job.model in self._loaded:
            self._loaded.move_to_end(job.model)
            self._running[job.id] = job.attempt, job.model
        self._connection.submit(job, priority)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Stop a job; unknown ones are ignored."""
        waiting = self._waiting.get(id)
        if waiting is not None and waiting[0].attempt == attempt:
            del self._waiting[id]
        self._no_longer(id, attempt)
        self._connection.abort(id, attempt)

    def lose_all(self) -> None:
        """The server is gone: every job is lost, and every adapter."""
        lost = [JobLost(id, job.attempt) for id, (job, _) in self._waiting.items()]
        self._forget()
        for event in lost:
            self._tell(event)
        self._connection.lose_all()

    async def settle(self) -> None:
        """Wait until nothing is being loaded any more."""
        if self._loading:
            await asyncio.wait(list(self._loading.values()))

    # ------------------------------------------------------------------- loading

    async def _load(self, model: ModelName) -> None:
        """Load an adapter and start what waits for it."""
        try:
            async with self._turn:
                await self._make_room()
                begun_s = time.monotonic()
                await self._order_load(model)
        except Exception as error:  # whatever it is, jobs wait for the outcome
            reason = str(error) if isinstance(error, QlmError) else unsaid(error)
            del self._loading[model]
            self._tell(SwapFailed(model, reason))
            # Whoever heard that has taken its jobs back; the others end here.
            for job, _ in self._take_waiting(model):
                self._tell(JobLost(job.id, job.attempt))
            return
        del self._loading[model]
        self.load_s = time.monotonic() - begun_s
        log.info("adapter loaded", extra={"model": model, "load_s": round(self.load_s, 3)})
        self._loaded[model] = None
        for job, priority in self._take_waiting(model):
            self.submit(job, priority)

    async def _order_load(self, model: ModelName) -> None:
        """Have the server load an adapter. Raises QlmError."""
        try:
            await self._order(
                "/v1/load_lora_adapter", {"lora_name": model, "lora_path": self._paths[model]}
            )
        except QlmError as error:
            # An earlier order was done although its answer did not say so in time, or at all.
            if _ALREADY_LOADED not in str(error):
                raise

    async def _make_room(self) -> None:
        while len(self._loaded) >= self._loaded_max:
            used = {model for _, model in self._running.values()}
            idle = next((model for model in self._loaded if model not in used), None)
            if idle is None:
                return
            # From now on its jobs wait until it is loaded again.
            del self._loaded[idle]
            try:
                await self._order("/v1/unload_lora_adapter", {"lora_name": idle})
            except QlmError as error:
                log.warning("adapter not unloaded", extra={"model": idle, "reason": str(error)})

    def _take_waiting(self, model: ModelName) -> list[tuple[Payload, int]]:
        found = [one for one in self._waiting.values() if one[0].model == model]
        for job, _ in found:
            del self._waiting[job.id]
        return found

    def _forget(self) -> None:
        for task in self._loading.values():
            task.cancel()
        self._loading.clear()
        self._loaded.clear()
        self._waiting.clear()
        self._running.clear()

    # ------------------------------------------------------------------- events

    def _hear(self, event: EngineEvent) -> None:
        if isinstance(event, End):
            self._no_longer(event.id, event.attempt)
        self._tell(event)

    def _no_longer(self, id: RequestId, attempt: int) -> None:
        """An attempt is not on its adapter any more; a later one of the same request may be."""
        if id in self._running and self._running[id][0] == attempt:
            del self._running[id]

    def _tell(self, event: EngineEvent) -> None:
        if self._listener is not None:
            self._listener(event)
