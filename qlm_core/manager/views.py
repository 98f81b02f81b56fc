"""Read-only pictures of the Manager as plain data: the whole fleet, and one request explained.

The forms are documented in docs/api.md; they hold names, counts and seconds, never prompts.
"""

from __future__ import annotations

from typing import Any

from qlm_core.grouping import RequestGroup
from qlm_core.manager import batch_views
from qlm_core.manager.fleet import Agent
from qlm_core.manager.machine import Manager
from qlm_core.manager.planner import PlanInForce
from qlm_core.model import Estimate, GroupId, RequestId, RequestMeta
from qlm_core.planning import explain as explain_group
from qlm_core.planning import repair

# Groups that one picture shows at most, of each queue its first; a message has a limit.
_GROUPS_SHOWN_MAX = 10_000
_GROUPS_SHOWN_MIN = 10


def estimate(manager: Manager, request: RequestMeta, *, now_s: float) -> Estimate | None:
    """The wait of a request that is not submitted; None if nobody serves its model."""
    wait = manager.timeline.hypothetical(request, manager.agents, manager.groups, now_s)
    return None if wait is None else manager.estimators.estimate(request, wait)


def view(manager: Manager, *, now_s: float) -> dict[str, Any]:
    """Agents with their queues, unplaced groups, the plan in force and the estimator's record."""
    shown_max = max(_GROUPS_SHOWN_MIN, _GROUPS_SHOWN_MAX // (len(manager.agents) + 1))
    unplaced = [
        group
        for group in manager.groups.values()
        if group.waiting and _queue_of(manager, group) is None
    ]
    waiting = sum(group.released for group in manager.groups.values())
    return {
        "epoch": manager.epoch,
        "waiting": waiting,
        "waiting_lines": sum(group.unreleased for group in manager.groups.values()),
        "held": len(manager.book) - waiting,
        "gateways": [{"id": id, "address": where} for id, where in manager.gateways.items()],
        "agents": [_agent(manager, agent, now_s, shown_max) for agent in manager.agents.values()],
        "unplaced": [_group(group, None) for group in unplaced[:shown_max]],
        "batches": batch_views.batches(manager, now_s=now_s),
        "plan": _plan(manager.planner.in_force, now_s),
        "planner": {
            "solves": manager.planner.solves,
            "adopted": manager.planner.adopted,
            "repairs": manager.planner.repairs,
            "moved_groups": manager.planner.moved,
        },
        "counts": dict(manager.counts),
        "rwt": {
            model: dict(
                zip(("coverage_p50", "coverage_p90", "coverage_p99"), known.coverage, strict=True)
            )
            | {"observed": known.observed}
            for model, known in manager.estimators.calibrations.items()
        },
        "finish": batch_views.finishes(manager),
        "speed": [
            {"gpu": gpu, "model": model, "factor": round(factor, 4)}
            for (gpu, model), factor in manager.estimators.speeds.items()
        ],
    }


def explain(manager: Manager, id: RequestId, *, now_s: float) -> dict[str, Any] | None:
    """Why a request stands where it stands; None for one that is not known (any more)."""
    held = manager.book.get(id)
    if held is None:
        return None
    request, group = held.request, held.group
    answer: dict[str, Any] = {
        "id": request.id,
        "model": request.model,
        "slo_class": request.slo_class,
        "waited_s": round(now_s - request.arrival_s, 3),
        "due_in_s": round(request.due_s - now_s, 3),
        "group": {"id": group.id, "waiting": group.waiting, "held": len(group.pulled)},
    } | batch_views.batch_of(manager, request, now_s=now_s)
    if held.agent is not None:
        return answer | {
            "state": "held",
            "agent": held.agent,
            "because": f"agent {held.agent} has pulled it; its engine decides the rest",
        }
    agent = _queue_of(manager, group)
    if agent is None:
        return answer | {"state": "unplaced", "because": _why_unplaced(manager, group)}
    return answer | _waiting(manager, agent, group, id, now_s)


def _waiting(
    manager: Manager, agent: Agent, group: RequestGroup, id: RequestId, now_s: float
) -> dict[str, Any]:
    starts = manager.timeline.start_in_s(agent, manager.groups, now_s)
    place = agent.queue.index(group.id)
    ahead = [manager.groups[other] for other in agent.queue[:place]]
    position = next(index for index, member in enumerate(group.members()) if member.id == id)
    swap = _swap_ahead(agent, ahead, group)
    start_s = max(0.0, starts.get(group.id, 0.0))
    profile = manager.estimators.profile(agent.profiles[group.key.model])
    pace_s = manager.estimators.rate(profile, group.key, now_s=now_s).seconds_per_request
    expected_s = max(0.0, starts.get(group.id, 0.0) + position * pace_s)
    parts = ["its group is first in the queue"]
    if ahead:
        requests = _counted(sum(g.waiting for g in ahead), "request")
        parts = [f"behind {_counted(len(ahead), 'group')} with {requests}"]
    if position:
        parts.append(f"{_counted(position, 'request')} ahead in its own group")
    if swap is not None:
        parts.append(f"{swap} has to be made awake first")
    return {
        "state": "waiting",
        "agent": agent.id,
        "place_in_queue": place,
        "groups_ahead": [
            _group(other, starts.get(other.id)) for other in ahead[:_GROUPS_SHOWN_MAX]
        ],
        "place_in_group": position,
        "group_starts_in_s": round(start_s, 3),
        "expected_start_in_s": round(expected_s, 3),
        "in_window": agent.window.group_of(id) is not None,
        "model_swap_to": swap,
        "because": f"on {agent.id}, {', '.join(parts)}; expected to start in {expected_s:.1f} s",
        "alternatives": _alternatives(manager, group, now_s),
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _alternatives(manager: Manager, group: RequestGroup, now_s: float) -> list[dict[str, Any]]:
    """The best other places of a group, and by how much the plan would cost more with each."""
    groups, agents = manager.view()
    snapshot = manager.planner.snapshot((groups, agents), manager.estimators, now_s=now_s)
    if group.id not in snapshot.groups:
        return []
    queues = {agent.id: agent.queue for agent in agents}
    plan = repair(snapshot.problem, snapshot.to_plan(queues))
    why = explain_group(snapshot.problem, plan, snapshot.groups.index(group.id))
    return [
        {
            "agent": snapshot.agents[other.queue],
            "place_in_queue": other.place,
            "extra_cost": round(other.extra_cost, 3),
        }
        for other in why.alternatives
    ]


def _swap_ahead(agent: Agent, ahead: list[RequestGroup], group: RequestGroup) -> str | None:
    last = ahead[-1].key.model if ahead else agent.model
    base = agent.base(group.key.model)
    return base if last is None or agent.base(last) != base else None


def _why_unplaced(manager: Manager, group: RequestGroup) -> str:
    serving = [a for a in manager.agents.values() if group.key.model in a.profiles]
    if not serving:
        return f"no connected agent serves {group.key.model}"
    return f"all {len(serving)} agents that serve {group.key.model} are draining"


def _queue_of(manager: Manager, group: RequestGroup) -> Agent | None:
    agent = manager.agents.get(group.home) if group.home is not None else None
    return agent if agent is not None and group.id in agent.queue else None


def _agent(manager: Manager, agent: Agent, now_s: float, shown_max: int) -> dict[str, Any]:
    starts = manager.timeline.start_in_s(agent, manager.groups, now_s)
    state = agent.state
    return {
        "id": agent.id,
        "gpu": agent.gpu,
        "connected": agent.connected,
        "ready": state.ready,
        "draining": state.draining,
        "awake_model": state.awake_model,
        "swapping_to": state.swapping_to,
        "tiers": {model: tier.value for model, tier in state.tiers},
        "models": list(agent.profiles),
        "held": len(agent.held),
        "running": len(state.running),
        "kv_used_tokens": state.kv_used_tokens,
        "tokens_per_s": round(state.tokens_per_s, 1),
        "window": len(agent.window),
        "queue": [
            _group(manager.groups[id], starts.get(id))
            for id in agent.queue[:shown_max]
            if id in manager.groups
        ],
        "queue_groups": len(agent.queue),
    }


def _group(group: RequestGroup, start_in_s: float | None) -> dict[str, Any]:
    first = group.first()
    return {
        "group": GroupId(group.id),
        "model": group.key.model,
        "slo_class": group.key.slo_class,
        "waiting": group.waiting,
        "waiting_lines": group.unreleased,
        "batch": None if group.key.batch is None else group.key.batch[1],
        "held": len(group.pulled),
        "starts_in_s": None if start_in_s is None else round(max(0.0, start_in_s), 3),
        "first_request": None if first is None else first.id,
    }


def _plan(plan: PlanInForce | None, now_s: float) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {
        "age_s": round(now_s - plan.at_s, 3),
        "objective": round(plan.objective, 3),
        "late_weight": round(plan.late_weight, 3),
        "groups": plan.groups,
        "queues": plan.queues,
        "backend": plan.backend,
        "termination": plan.termination,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "bound_age_s": None if plan.bound_at_s is None else round(now_s - plan.bound_at_s, 3),
        "moved": plan.moved,
        "wall_s": round(plan.wall_s, 4),
        "capacity": [
            {
                "gpu": value.gpu,
                "instances": value.instances,
                "saves_cost": round(value.saves_cost, 3),
                "saves_late_weight": round(value.saves_late_weight, 3),
            }
            for value in plan.capacity
        ],
    }
