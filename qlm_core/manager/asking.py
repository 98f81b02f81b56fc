"""When a batch would be done that is not submitted, or one request: placed as it would be now, looked at, and forgotten.

Nothing of the Manager changes. A batch is put into a copy of the queues by the insertion that would place it; the finish time
that follows is that of the first look at a batch of this shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from math import hypot, inf

from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.finish_words import duration, explained
from qlm_core.manager.finishes import first_told, verdict_s
from qlm_core.manager.finishing import Forecaster
from qlm_core.manager.fleet import Agent
from qlm_core.manager.machine import Manager
from qlm_core.manager.reckoning import Work
from qlm_core.messages import BatchForecast, BatchQuestion, BulkShape
from qlm_core.model import (
    AgentId,
    BatchId,
    Estimate,
    GatewayId,
    GroupId,
    ModelName,
    RequestId,
    RequestMeta,
)
from qlm_core.planning import repair

_NOBODY = GatewayId("")
_ASKED = BatchId("asked")


def forecast(
    manager: Manager, question: BatchQuestion, *, now_s: float
) -> BatchForecast | ModelName:
    """The answer; instead of it a model that nobody serves, if there is one."""
    parts = [replace(part, lines=max(1, part.lines)) for part in question.parts]
    waits = []
    for part in parts:
        wait = _wait(manager, question, part, now_s)
        if wait is None:
            return part.model
        waits.append(wait)
    wait = min(waits, key=lambda one: one.p50_s)
    window_s = question.slo.e2e_s
    if sum(part.lines for part in parts) == 1:
        p50_s, p90_s = _of_one(manager, question, parts[0], wait, now_s)
        words = f"it would wait {duration(wait.p50_s)} or so for its first token"
    else:
        found = _placed(manager, question, parts, now_s)
        if isinstance(found, str):
            return found
        p50_s, p90_s, words = found
    in_time = window_s is None or verdict_s(p50_s, p90_s) <= window_s
    return BatchForecast(wait, in_time and wait.p90_s <= question.slo.start_s, p50_s, p90_s, words)


def _wait(
    manager: Manager, question: BatchQuestion, part: BulkShape, now_s: float
) -> Estimate | None:
    """The wait of one line that would come now; None if nobody serves its model."""
    request = _request(question, part, now_s)
    wait = manager.timeline.hypothetical(request, manager.agents, manager.groups, now_s)
    return None if wait is None else manager.estimators.estimate(request, wait)


def _request(question: BatchQuestion, part: BulkShape, now_s: float) -> RequestMeta:
    return RequestMeta(
        id=RequestId(_ASKED),
        gateway=_NOBODY,
        model=part.model,
        slo_class=question.slo_class,
        slo=question.slo,
        prompt_tokens=max(1, round(part.prompt_tokens_mean)),
        max_output_tokens=max(1, part.max_output_tokens),
        arrival_s=now_s,
    )


def _of_one(
    manager: Manager, question: BatchQuestion, part: BulkShape, wait: Estimate, now_s: float
) -> tuple[float, float]:
    """When one request would end: its wait, and an output of its class on the fastest instance."""
    request = _request(question, part, now_s)
    known = manager.estimators
    lengths = known.lengths(request.model, request.slo_class)
    token_s = inf
    for agent in manager.agents.values():
        if request.model in agent.profiles:
            profile = known.profile(agent.profiles[request.model])
            batch = max(1, min(len(agent.held) + 1, profile.max_num_seqs))
            context = float(agent.state.kv_used_tokens)
            token_s = min(token_s, profile.iteration_s(decode_batch=batch, context_tokens=context))
    middle, long = (lengths.quantile(share, request.max_output_tokens) for share in (0.5, 0.9))
    middle_s, more_s = middle * token_s, (long - middle) * token_s
    p50_s = wait.p50_s + middle_s
    return p50_s, p50_s + hypot(wait.p90_s - wait.p50_s, more_s)


def _placed(
    manager: Manager, question: BatchQuestion, parts: list[BulkShape], now_s: float
) -> tuple[float, float, str] | ModelName:
    """When a batch would end, from the queues as they would be."""
    known = manager.estimators
    slo, batch = question.slo, (_NOBODY, _ASKED)
    keys = {
        part.model: GroupKey.of_lines(part.model, question.slo_class, slo, batch, slo.start_s)
        for part in parts
    }
    try:
        for part in parts:
            known.batch(keys[part.model]).told(
                prompt_tokens=part.prompt_tokens_mean, limit_tokens=part.max_output_tokens
            )
        groups, agents = _queues(manager, parts, keys, now_s)
        fleet = Forecaster(known, manager.timeline, agents.values(), groups, now_s=now_s)
        outlooks = []
        for part in parts:
            key = keys[part.model]
            work = Work(key=key, waiting=part.lines, running=0, together={key: None})
            outlook = fleet.outlook(work)
            if outlook is None:
                return part.model
            outlooks.append(outlook)
    finally:
        for part in parts:
            known.batch_over(part.model, batch)
    p50_s, p90_s = first_told(manager.finishes, outlooks)
    window_s = inf if slo.e2e_s is None else slo.e2e_s
    feasible = verdict_s(p50_s, p90_s) <= window_s
    lines = sum(part.lines for part in parts)
    words = explained(lines, len(parts), outlooks, p50_s, p90_s, window_s, feasible=feasible)
    return p50_s, p90_s, words


def _queues(
    manager: Manager, parts: list[BulkShape], keys: Mapping[ModelName, GroupKey], now_s: float
) -> tuple[dict[GroupId, RequestGroup], dict[AgentId, Agent]]:
    """Groups and agents as they would be with the batch; those of the Manager stay as they are."""
    new: list[RequestGroup] = []
    for part in parts:
        for lines in manager.bulks.shares(part.model, part.lines, manager.roster):
            group = RequestGroup(GroupId(-1 - len(new)), keys[part.model], now_s)
            group.unreleased = lines
            new.append(group)
    waiting, usable = manager.view()
    view = [*waiting, *new], usable
    snapshot = manager.planner.snapshot(view, manager.estimators, now_s=now_s)
    present = snapshot.to_plan({agent.id: agent.queue for agent in usable})
    queues = snapshot.to_queues(repair(snapshot.problem, present))
    agents = {}
    for agent in usable:
        agents[agent.id] = changed = copy(agent)
        changed.queue = queues[agent.id]
    return manager.groups | {group.id: group for group in new}, agents
