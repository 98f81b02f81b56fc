"""Runs the Manager: posts events to it, carries its effects out, wakes it in time.

Everything here happens on one event loop, so the Manager needs no lock. An effect for a session goes into that
session's outbox; a solve runs in the planner's own processes and comes back as events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from qlm_core.config import Config
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    Effect,
    Event,
    PlanFinished,
    PlanImproved,
    StartSolve,
    TellAgent,
    TellGateway,
    Wakeup,
)
from qlm_core.messages import AgentOrder, GatewayOrder
from qlm_core.model import AgentId, GatewayId
from qlm_core.planning import Plan, PlanResult, Problem, Termination

log = logging.getLogger("qlm.solver")

_IMPROVEMENT_INTERVAL_S = 0.05
"""Improvements of one solve are offered to the Manager at most this often; the last one always is."""


class PlannerPool(Protocol):
    """What the driver needs of the backend processes."""

    async def solve(
        self,
        problem: Problem,
        *,
        warm: Plan,
        prove: bool,
        duals: Sequence[float],
        on_improvement: Callable[[Plan, float], None],
    ) -> PlanResult:
        """The best plan within the configured budget, and with `prove` a bound on how good one can be.

        `duals` are prices to start that bound from, NaN where there is none. Never raises for a backend's failure.
        """


class Driver:
    """The event loop's side of the Manager.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, config: Config, pool: PlannerPool, *, clock: Callable[[], float]):
        classes = tuple(config.slo_class(name) for name in config.slo_classes)
        self._clock = clock
        self._started_s = clock()
        self.manager = Manager(config.solver, classes, now_s=0.0)
        self._pool = pool
        self._gateways: dict[GatewayId, Callable[[GatewayOrder], None]] = {}
        self._agents: dict[AgentId, Callable[[AgentOrder], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._solve: asyncio.Task[None] | None = None

    def now_s(self) -> float:
        """Seconds since this driver was made: the Manager's clock."""
        return self._clock() - self._started_s

    def post(self, event: Event) -> None:
        """Hand an event to the Manager and carry out what it orders."""
        for effect in self.manager.handle(event, now_s=self.now_s()):
            self._carry_out(effect)
        self._set_timer()

    def attach_gateway(self, id: GatewayId, send: Callable[[GatewayOrder], None]) -> None:
        """Orders to this gateway go to `send` from now on."""
        self._gateways[id] = send

    def detach_gateway(self, id: GatewayId) -> None:
        """Orders to this gateway are dropped from now on."""
        self._gateways.pop(id, None)

    def attach_agent(self, id: AgentId, send: Callable[[AgentOrder], None]) -> None:
        """Orders to this agent go to `send` from now on."""
        self._agents[id] = send

    def detach_agent(self, id: AgentId) -> None:
        """Orders to this agent are dropped from now on."""
        self._agents.pop(id, None)

    async def close(self) -> None:
        """Stop the timer and the solve under way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._solve is not None:
            self._solve.cancel()
            await asyncio.gather(self._solve, return_exceptions=True)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case TellAgent(agent, order):
                send_agent = self._agents.get(agent)
                if send_agent is not None:
                    send_agent(order)
            case TellGateway(gateway, order):
                send_gateway = self._gateways.get(gateway)
                if send_gateway is not None:
                    send_gateway(order)
            case StartSolve():
                self._solve = asyncio.get_running_loop().create_task(self._run(effect))

    async def _run(self, order: StartSolve) -> None:
        offered_s = self.now_s()

        def improved(plan: Plan, _objective: float) -> None:
            nonlocal offered_s
            if self.now_s() - offered_s >= _IMPROVEMENT_INTERVAL_S:
                offered_s = self.now_s()
                self.post(PlanImproved(order.solve, plan))

        try:
            result = await self._pool.solve(
                order.problem,
                warm=order.warm,
                prove=order.prove,
                duals=order.duals,
                on_improvement=improved,
            )
        # Whatever it was: a solve that is never reported as finished would be the last one.
        except Exception as error:
            log.exception("solve failed", extra={"solve": order.solve, "reason": str(error)})
            result = PlanResult(
                plan=None,
                objective=float("inf"),
                lower_bound=None,
                termination=Termination.ERROR,
                backend="none",
                detail=str(error),
            )
        self.post(PlanFinished(order.solve, result))

    def _set_timer(self) -> None:
        wakeup_s = self.manager.wakeup_s
        if wakeup_s is None or wakeup_s >= self._timer_s - 1e-4:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = wakeup_s
        delay_s = max(0.001, wakeup_s - self.now_s())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer_s = float("inf")
        self.post(Wakeup())
