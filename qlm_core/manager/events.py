"""What the Manager hears and what it orders.

Facts come from gateways, agents, the planner and the clock; orders go to gateways, agents and the
planner. Both are values: the service carries them over gRPC, the simulator over a heap.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.messages import (
    AgentHello,
    AgentOrder,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
)
from qlm_core.model import AgentId, GatewayId, InstanceState
from qlm_core.planning import Plan, PlanResult, Problem


@dataclass(frozen=True, slots=True)
class GatewayJoined:
    """A gateway opened a session; what it holds follows as facts."""

    hello: GatewayHello


@dataclass(frozen=True, slots=True)
class GatewaySaid:
    """A fact from a gateway."""

    gateway: GatewayId
    fact: GatewayFact


@dataclass(frozen=True, slots=True)
class GatewayLeft:
    """A gateway's session ended; it may come back within its lease."""

    gateway: GatewayId


@dataclass(frozen=True, slots=True)
class AgentJoined:
    """An agent opened a session."""

    hello: AgentHello


@dataclass(frozen=True, slots=True)
class AgentReported:
    """An agent reported the state of its instance, which also renews its lease."""

    agent: AgentId
    state: InstanceState


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """An agent's session ended; it may come back within its lease."""

    agent: AgentId


@dataclass(frozen=True, slots=True)
class PlanImproved:
    """The planner has a better plan for the problem of solve `solve`; more may follow."""

    solve: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class PlanFinished:
    """The planner has ended solve `solve`, with or without a plan."""

    solve: int
    result: PlanResult


@dataclass(frozen=True, slots=True)
class Wakeup:
    """Time has passed. Early or doubled ones are harmless."""


@dataclass(frozen=True, slots=True)
class Slept:
    """The solver itself did not run for `seconds`: it could hear nobody, so no lease ran meanwhile."""

    seconds: float


Event = (
    GatewayJoined
    | GatewaySaid
    | GatewayLeft
    | AgentJoined
    | AgentReported
    | AgentLeft
    | PlanImproved
    | PlanFinished
    | Wakeup
    | Slept
)


@dataclass(frozen=True, slots=True)
class TellGateway:
    """Send an order to a gateway; dropped if its session is closed."""

    gateway: GatewayId
    order: GatewayOrder


@dataclass(frozen=True, slots=True)
class TellAgent:
    """Send an order to an agent; dropped if its session is closed."""

    agent: AgentId
    order: AgentOrder


@dataclass(frozen=True, slots=True)
class PartGateway:
    """End a gateway's session, if one is open: it is not known here. It will join and announce anew."""

    gateway: GatewayId
    reason: str


@dataclass(frozen=True, slots=True)
class PartAgent:
    """End an agent's session, if one is open: it is not known here. It will join anew."""

    agent: AgentId
    reason: str


@dataclass(frozen=True, slots=True)
class StartSolve:
    """Look for a better plan than `warm`; answered by `PlanFinished` with the same number.

    With `prove`, go on after the search and find out how far from optimal the best plan can be,
    starting from `duals`: the prices of the groups under the last bound, NaN for new ones.
    """

    solve: int
    problem: Problem
    warm: Plan
    prove: bool = False
    duals: tuple[float, ...] = ()


Effect = TellGateway | TellAgent | PartGateway | PartAgent | StartSolve
