"""Drives the executor with a real clock and a real engine: events in, effects carried out, timers kept.

Everything happens on one event loop. An event that comes while another is handled waits for it, so engine and
links may call back at any moment. Output takes a short way: counted by the executor, then straight to its
gateway's link.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

import failpoints
from agents.engines.base import Engine
from qlm_core.executor import (
    Abort,
    Drained,
    Effect,
    EngineDown,
    EngineReady,
    Event,
    Executor,
    ExecutorState,
    JobOutput,
    Report,
    Send,
    Submit,
    SwapFailed,
    SwapModel,
    Wakeup,
    Warm,
)
from qlm_core.messages import (
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Pull,
    QueueUpdate,
    ReturnReason,
)
from qlm_core.model import GatewayId, InstanceState, RequestId
from qlm_core.presence import PULSE_S, SleepWatch

log = logging.getLogger("qlm.agent")


class WorkLink(Protocol):
    """Where what concerns one gateway goes."""

    def put(self, event: Chunk | Pull | AttemptEnded | AttemptReturned) -> None:
        """Send an event, in order, when the stream allows."""


@dataclass(slots=True, eq=False)
class Run:
    """An attempt on the engine, and where its output goes."""

    id: RequestId
    attempt: int
    link: WorkLink


@dataclass(slots=True)
class Counts:
    """What the agent has done since it started, for its metrics."""

    pulled: int = 0
    finished: int = 0
    refused: int = 0
    returned: dict[ReturnReason, int] = field(
        default_factory=lambda: dict.fromkeys(ReturnReason, 0)
    )
    output_tokens: int = 0
    chunks: int = 0
    swaps: int = 0
    swaps_failed: int = 0
    engine_losses: int = 0


class Driver:
    """Owns the executor.

    Args:
        clock: monotonic seconds.
        report: takes the state of the instance whenever it is due.
    """

    def __init__(
        self,
        executor: Executor,
        engine: Engine,
        *,
        clock: Callable[[], float],
        report: Callable[[InstanceState], None],
    ) -> None:
        self.executor = executor
        self.engine = engine
        self.links: dict[GatewayId, WorkLink] = {}
        self.runs: dict[RequestId, Run] = {}
        self.counts = Counts()
        self.drained = asyncio.Event()
        self._clock = clock
        self._report = report
        self._events: deque[Event] = deque()
        self._handling = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        self._watch = SleepWatch(clock())
        self._slept_s = 0.0

    def now_s(self) -> float:
        """Seconds on the executor's clock."""
        return self._clock()

    def awake_s(self) -> float:
        """Seconds for which this process has really run, on a clock of its own: the grace of a gateway counts on it."""
        now_s = self._clock()
        slept_s = self._watch.slept_s(now_s)
        if slept_s:
            log.warning("did not run for a while", extra={"slept_s": round(slept_s, 1)})
            self._slept_s += slept_s
        return now_s - self._slept_s

    def post(self, event: Event) -> None:
        """Handle an event, or let it wait for the one being handled."""
        self.awake_s()
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._handling = False
        self._keep_time()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, event: Event) -> None:
        kind = type(event)
        if kind is EngineDown and self.executor.state is not ExecutorState.DOWN:
            self.counts.engine_losses += 1
        effects = self.executor.handle(event, now_s=self._clock())
        if kind is JobOutput:
            assert isinstance(event, Chunk)
            run = self.runs.get(event.id)
            if run is not None and run.attempt == event.attempt:
                self.counts.chunks += 1
                self.counts.output_tokens += event.tokens
                failpoints.at("agents.driver.output_came")
                run.link.put(event)
        elif kind in _LOGGED:
            self._note(event)
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(gateway, event):
                self._send(gateway, event)
            case Submit(gateway, job, priority):
                self.runs[job.id] = Run(job.id, job.attempt, self.links[gateway])
                failpoints.at("agents.driver.submitting")
                self.engine.submit(job, priority)
            case Abort(id, attempt):
                self.engine.abort(id, attempt)
                self._forget(id, attempt)
            case Report(state):
                used = self.engine.kv_used_tokens()
                self._report(replace(state, kv_used_tokens=used) if used else state)
            case SwapModel(model):
                log.info("model swap", extra={"model": model})
                self.counts.swaps += 1
                failpoints.at("agents.driver.swapping")
                self.engine.swap(model)
            case Warm(models):
                self.engine.warm(models)
            case Drained():
                self.drained.set()

    def _send(self, gateway: GatewayId, event: Pull | AttemptEnded | AttemptReturned) -> None:
        if isinstance(event, AttemptEnded):
            failpoints.at("agents.driver.engine_done")
        self.links[gateway].put(event)
        match event:
            case Pull(ids):
                self.counts.pulled += len(ids)
            case AttemptEnded():
                self._forget(event.id, event.attempt)
                if event.finish_reason == "error":
                    self.counts.refused += 1
                    log.warning(
                        "engine refused", extra={"id": event.id, "status": event.error_status}
                    )
                else:
                    self.counts.finished += 1
            case AttemptReturned(id, attempt, reason):
                self._forget(id, attempt)
                self.counts.returned[reason] += 1
                log.info("returned", extra={"id": id, "attempt": attempt, "reason": reason.value})

    def _forget(self, id: RequestId, attempt: int) -> None:
        run = self.runs.get(id)
        if run is not None and run.attempt == attempt:
            del self.runs[id]

    def _note(self, event: Event) -> None:
        match event:
            case EngineReady(awake, _):
                log.info("engine ready", extra={"model": awake})
            case EngineDown(reason):
                log.error("engine down", extra={"reason": reason})
            case SwapFailed(model, reason):
                self.counts.swaps_failed += 1
                log.error("model swap failed", extra={"model": model, "reason": reason})
            case QueueUpdate() if event.snapshot:
                log.info("queue snapshot", extra={"epoch": event.epoch})

    def _keep_time(self) -> None:
        """Have the executor woken when it wants to be; an early timer is left alone."""
        # At least once a pulse, so that only sleep is taken for sleep.
        due_s = min(self.executor.wakeup_s, self._clock() + PULSE_S)
        if due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        delay_s = max(0.0, due_s - self._clock())
        self._timer = self._loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_s = None, inf
        self.post(Wakeup())


_LOGGED = (EngineReady, EngineDown, SwapFailed, QueueUpdate)
