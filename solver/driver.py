"""Runs the Manager: posts events to it, carries its effects out, wakes it in time.

Everything here happens on one event loop, so the Manager needs no lock. An effect for a session goes into that
session's outbox; a solve runs in the planner's own processes and comes back as events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import failpoints
from qlm_core.config import Config
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    Effect,
    Event,
    PartAgent,
    PartGateway,
    PlanFinished,
    PlanImproved,
    Slept,
    StartSolve,
    TellAgent,
    TellGateway,
    Wakeup,
)
from qlm_core.messages import AgentOrder, GatewayOrder
from qlm_core.model import AgentId, GatewayId
from qlm_core.planning import Plan, PlanResult, Problem, Termination
from qlm_core.presence import PULSE_S, SleepWatch

log = logging.getLogger("qlm.solver")

_IMPROVEMENT_INTERVAL_S = 0.05
"""Improvements of one solve are offered to the Manager at most this often; the last one always is."""


OrderT_contra = TypeVar("OrderT_contra", contravariant=True)


class Session(Protocol[OrderT_contra]):
    """What the driver needs of a peer's open session."""

    def send(self, order: OrderT_contra) -> None:
        """Send an order, in order."""

    def part(self, reason: str) -> None:
        """End the session; the peer is told why, and joins anew."""


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
        self._gateways: dict[GatewayId, Session[GatewayOrder]] = {}
        self._agents: dict[AgentId, Session[AgentOrder]] = {}
        self._watch = SleepWatch(0.0)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._solve: asyncio.Task[None] | None = None

    def now_s(self) -> float:
        """Seconds since this driver was made: the Manager's clock."""
        return self._clock() - self._started_s

    def post(self, event: Event) -> None:
        """Hand an event to the Manager and carry out what it orders."""
        # Whatever woke this process first: leases must not run out by its own sleep.
        slept_s = self._watch.slept_s(self.now_s())
        if slept_s and self._timer is not None:
            log.warning("did not run for a while", extra={"slept_s": round(slept_s, 1)})
            self._handle(Slept(slept_s))
        self._handle(event)
        self._set_timer()

    def attach_gateway(self, id: GatewayId, session: Session[GatewayOrder]) -> None:
        """Orders to this gateway go to this session from now on."""
        self._gateways[id] = session

    def detach_gateway(self, id: GatewayId) -> None:
        """Orders to this gateway are dropped from now on."""
        self._gateways.pop(id, None)

    def attach_agent(self, id: AgentId, session: Session[AgentOrder]) -> None:
        """Orders to this agent go to this session from now on."""
        self._agents[id] = session

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

    def _handle(self, event: Event) -> None:
        for effect in self.manager.handle(event, now_s=self.now_s()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case TellAgent(agent, order) if agent in self._agents:
                self._agents[agent].send(order)
            case TellGateway(gateway, order) if gateway in self._gateways:
                self._gateways[gateway].send(order)
            case PartAgent(agent, reason) if agent in self._agents:
                self._agents[agent].part(reason)
            case PartGateway(gateway, reason) if gateway in self._gateways:
                self._gateways[gateway].part(reason)
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
        failpoints.at("solver.driver.plan_found")
        self.post(PlanFinished(order.solve, result))

    def _set_timer(self) -> None:
        # At least once a pulse, so that only sleep is taken for sleep.
        pulse_s = self.now_s() + PULSE_S
        wakeup_s = self.manager.wakeup_s
        wakeup_s = pulse_s if wakeup_s is None else min(wakeup_s, pulse_s)
        if wakeup_s >= self._timer_s - 1e-4:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = wakeup_s
        delay_s = max(0.001, wakeup_s - self.now_s())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer_s = float("inf")
        self.post(Wakeup())
