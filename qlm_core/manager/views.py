"""Read-only pictures of the Manager as plain data: the whole fleet, and one request explained.

The forms are documented in docs/api.md; they hold names, counts and seconds, never prompts.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from qlm_core.grouping import RequestGroup
from qlm_core.manager import batch_views
from qlm_core.manager.advice import advice
from qlm_core.manager.fleet import Agent
from qlm_core.manager.machine import Manager
from qlm_core.manager.planner import PlanInForce
from qlm_core.manager.timeline import Span
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


def view(manager: Manager, *, now_s: float, groups_max: int = 0) -> dict[str, Any]:
    """Agents with their queues, unplaced groups, the plan in force and the estimator's record.

    Args:
        groups_max: of each queue so many groups, its first; 0: as many as a message has room for.
    """
    shown_max = max(_GROUPS_SHOWN_MIN, _GROUPS_SHOWN_MAX // (len(manager.agents) + 1))
    if groups_max:
        shown_max = min(shown_max, groups_max)
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
        "classes": _classes(manager, now_s),
        "unplaced": [_group(group, None, now_s) for group in unplaced[:shown_max]],
        "batches": batch_views.batches(manager, now_s=now_s),
        "plan": _plan(manager.planner.in_force, now_s),
        "advice": [
            {
                "gpu": one.gpu,
                "instances": one.instances,
                "needed": one.needed,
                "busy": round(one.busy, 2),
            }
            for one in advice(manager, now_s=now_s)
        ],
        "plans": [_plan(plan, now_s) for plan in manager.planner.history],
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
    spans = manager.timeline.spans(agent, manager.groups, now_s)
    place = agent.queue.index(group.id)
    ahead = [manager.groups[other] for other in agent.queue[:place]]
    position = next(index for index, member in enumerate(group.members()) if member.id == id)
    swap = _swap_ahead(agent, ahead, group)
    start_s = max(0.0, spans[group.id].start_in_s) if group.id in spans else 0.0
    profile = manager.estimators.profile(agent.profiles[group.key.model])
    pace_s = manager.estimators.rate(profile, group.key, now_s=now_s).seconds_per_request
    begins_s = spans[group.id].start_in_s if group.id in spans else 0.0
    expected_s = max(0.0, begins_s + position * pace_s)
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
            _group(other, spans.get(other.id), now_s) for other in ahead[:_GROUPS_SHOWN_MAX]
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
    spans = manager.timeline.spans(agent, manager.groups, now_s)
    state = agent.state
    profile = agent.profiles.get(agent.model) if agent.model is not None else None
    groups = [manager.groups[id] for id in agent.queue if id in manager.groups]
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
        "batch_max": None if profile is None else profile.max_num_seqs,
        "kv_used_tokens": state.kv_used_tokens,
        "kv_cache_tokens": None if profile is None else profile.kv_cache_tokens,
        "tokens_per_s": round(state.tokens_per_s, 1),
        "window": len(agent.window),
        "queue": [_group(group, spans.get(group.id), now_s) for group in groups[:shown_max]],
        "queue_groups": len(agent.queue),
        "queue_waiting": sum(group.waiting for group in groups),
        "queue_expected_late": sum(_late(group, spans.get(group.id), now_s) for group in groups),
    }


def _classes(manager: Manager, now_s: float) -> dict[str, dict[str, Any]]:
    """What waits and what is held, by SLO class."""
    found: dict[str, dict[str, Any]] = {}
    for group in manager.groups.values():
        counts = found.setdefault(group.key.slo_class, {"waiting": 0, "held": 0, "oldest_s": 0.0})
        counts["waiting"] += group.waiting
        counts["held"] += len(group.pulled)
        first = group.first()
        if first is not None:
            counts["oldest_s"] = max(counts["oldest_s"], round(now_s - first.arrival_s, 3))
    return found


def _group(group: RequestGroup, span: Span | None, now_s: float) -> dict[str, Any]:
    first = group.first()
    due_in_s = None if first is None else group.key.due_s(first) - now_s
    return {
        "group": GroupId(group.id),
        "model": group.key.model,
        "slo_class": group.key.slo_class,
        "waiting": group.waiting,
        "waiting_lines": group.unreleased,
        "batch": None if group.key.batch is None else group.key.batch[1],
        "held": len(group.pulled),
        "starts_in_s": None if span is None else round(max(0.0, span.start_in_s), 3),
        "ends_in_s": None if span is None else round(max(0.0, span.end_in_s), 3),
        "swap_s": 0.0 if span is None else round(span.swap_s, 3),
        "due_in_s": None if due_in_s is None else round(due_in_s, 3),
        "last_due_in_s": round(group.last_due_s - now_s, 3),
        "expected_late": _late(group, span, now_s),
        "first_request": None if first is None else first.id,
    }


def _late(group: RequestGroup, span: Span | None, now_s: float) -> int:
    """How many waiting members are expected to be late, as if their starts and their due times were evenly spread."""
    first = group.first()
    if first is None or span is None:
        return 0
    due_in_s = group.key.due_s(first) - now_s
    first_slack_s = due_in_s - max(0.0, span.start_in_s)
    last_slack_s = max(due_in_s, group.last_due_s - now_s) - max(0.0, span.end_in_s)
    if first_slack_s >= 0.0 and last_slack_s >= 0.0:
        return 0
    if first_slack_s < 0.0 and (last_slack_s < 0.0 or group.waiting == 1):
        return group.waiting
    worst_s, best_s = sorted((first_slack_s, last_slack_s))
    return min(group.waiting, ceil(group.waiting * -worst_s / (best_s - worst_s)))


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
                "more": value.more,
            }
            for value in plan.capacity
        ],
    }
