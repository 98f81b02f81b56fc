"""What must agree between the parts: now and then where nothing is on its way between two of them, and at the end.

At the end nothing is open any more and no fault has been at work for a while. Then everything has let go of everything, and the
service is whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from qlm_core.model import AgentId, RequestId
from qlm_core.sim.faults.agent_link import EVENTS_MAX
from qlm_core.sim.faults.agent_part import AgentPart
from qlm_core.sim.faults.checkers import Checkers, Violation
from qlm_core.sim.faults.gateway_doors import Doors
from qlm_core.sim.faults.gateway_part import GatewayPart
from qlm_core.sim.faults.solver_part import SolverPart

_EXPIRIES_SPARE = 64


def look(solver: SolverPart, doors: Iterable[Doors], agents: Iterable[AgentPart]) -> None:
    """Check what must hold at any moment. Raises Violation."""
    for agent in agents:
        if agent.process.up:
            _bounded(agent)
    for door in doors:
        gateway = door.gateway
        if gateway.process.up:
            if len(gateway.ledger) > len(gateway.live):
                raise Violation(
                    "all is bounded", f"{gateway.id} has rows of requests that nobody has"
                )
            _compare(solver, door)


def _bounded(agent: AgentPart) -> None:
    for link in agent.links.values():
        if len(link.log) > EVENTS_MAX:
            raise Violation(
                "all is bounded", f"{agent.id} keeps {len(link.log)} events for {link.gateway}"
            )


def _compare(solver: SolverPart, door: Doors) -> None:
    """What the solver believes of a gateway's requests is what its ledger says, if nothing is on its way."""
    gateway, end = door.gateway, door.in_session
    if not solver.process.up or solver.process.asleep or gateway.process.asleep or end is None:
        return
    session = solver.gateways.get(gateway.id)
    if session is None or session.end is not end.other or end.sent != end.other.taken:
        return
    ledger, book = gateway.ledger, solver.manager.book
    held: dict[RequestId, AgentId | None] = {}
    for row in ledger.newest():
        if row.restored and row.rest_until_s is not None:
            # The solver hears of it when it may be granted.
            continue
        held[row.meta.id] = row.agent if row.rest_until_s is None else row.rested_by
    believed: dict[RequestId, AgentId | None] = {}
    for id in book.of_gateway(gateway.id):
        record = book.get(id)
        believed[id] = None if record is None else record.agent
    for id in [*held, *believed]:
        if id not in held:
            raise Violation("told is held", f"the solver believes that {id} is open; it is not")
        if id not in believed:
            raise Violation("told is held", f"the solver does not know of {id}, which is open")
        if held[id] != believed[id]:
            raise Violation(
                "told is held", f"{id} is held by {held[id]}; the solver believes {believed[id]}"
            )


def at_the_end(
    solver: SolverPart, doors: Iterable[Doors], agents: Iterable[AgentPart], checkers: Checkers
) -> None:
    """Check what must hold once everything has ended and every fault is over. Raises Violation."""
    for door in doors:
        _gateway_at_rest(solver, door.gateway)
    for agent in agents:
        _agent_at_rest(solver, agent)
    _solver_at_rest(solver)
    for door in doors:
        _all_recorded(door.gateway, checkers)


def _gateway_at_rest(solver: SolverPart, gateway: GatewayPart) -> None:
    if gateway.id not in solver.gateways:
        raise Violation("the service is whole", f"{gateway.id} has no session with the solver")
    if gateway.id not in solver.manager.gateways:
        raise Violation("the service is whole", f"the solver does not know {gateway.id}")


def _agent_at_rest(solver: SolverPart, agent: AgentPart) -> None:
    executor = agent.executor
    if agent.id not in solver.agents or agent.id not in solver.manager.agents:
        raise Violation("the service is whole", f"the solver does not know {agent.id}")
    for gateway in solver.manager.gateways:
        link = agent.links.get(gateway)
        if link is None or not link.connected:
            raise Violation("the service is whole", f"{agent.id} is not connected to {gateway}")
    left = {
        "requests in flight": len(executor.batch),
        "references in its window": len(executor.window),
        "runs": len(agent.runs),
        "jobs on its engine": len(agent.engine.jobs),
        "tokens in its count of the KV cache": executor.batch.resident_tokens,
    }
    _nothing_left(str(agent.id), left)


def _solver_at_rest(solver: SolverPart) -> None:
    manager = solver.manager
    left = {
        "requests in its book": len(manager.book),
        "requests that it counts as waiting": manager.book.waiting,
        "groups": len(manager.groups),
        "batches": len(manager.bulks),
    }
    for agent in manager.agents.values():
        left[f"requests that {agent.id} is said to hold"] = len(agent.held)
        left[f"groups in the queue of {agent.id}"] = len(agent.queue)
        left[f"references in the window of {agent.id}"] = len(agent.window)
    _nothing_left("the solver", left)


def _nothing_left(who: str, left: dict[str, int]) -> None:
    for what, count in left.items():
        if count:
            raise Violation("counts return to zero", f"{who} still has {count} {what}")


def _all_recorded(gateway: GatewayPart, checkers: Checkers) -> None:
    store = gateway.store
    for id, request in checkers.requests.items():
        if not id.startswith(f"{gateway.id}/") or not (request.durable and request.acknowledged):
            continue
        if id not in store.requests:
            raise Violation("nothing acknowledged is lost", f"{id} is not in the store")
        if id not in store.ends:
            raise Violation("one terminal record", f"{id} has none")
        if request.told is not None and request.told != store.ends[id].record:
            raise Violation("one terminal record", f"{id} was told another end than is stored")
