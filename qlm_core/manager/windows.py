"""What to send an agent so that its queue and window match the plan.

An agent holds the order of its first groups and a window of request references: the first
`size` waiting requests in queue order, and all of any group that has been sent entirely. So a message is
bounded, arrivals for the front reach the agent at once, and a hundred thousand waiting requests stay here. Lines of a batch that
are no requests yet cannot be told; what stands behind them and needs another model is not told before they are over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qlm_core.grouping import RequestGroup
from qlm_core.manager.fleet import Agent
from qlm_core.messages import QueueUpdate
from qlm_core.model import GroupId, ModelName, QueuedGroup, RequestId, RequestMeta, RequestRef

# Groups whose order an agent is told, where its window reaches into fewer.
_ORDER_GROUPS_MIN = 4096

Groups = Mapping[GroupId, RequestGroup]
Expected = Callable[[RequestMeta], int]


def reference(request: RequestMeta, group: GroupId, expected: Expected) -> RequestRef:
    """A request as an agent's window holds it."""
    return RequestRef(
        id=request.id,
        gateway=request.gateway,
        group=group,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        expected_output_tokens=expected(request),
        produced_tokens=request.produced_tokens,
        due_s=request.due_s,
    )


def match_window(
    agent: Agent, groups: Groups, *, size: int, epoch: int, expected: Expected
) -> QueueUpdate | None:
    """Bring the window in line with the queue; None if the agent has it all already.

    What is sent first in a session replaces all that the agent has: it may be from another solver, whose groups had the same ids.
    """
    order = tuple(
        QueuedGroup(group.id, group.key.model, group.key.slo_class)
        for group in (groups[id] for id in agent.queue[: max(size, _ORDER_GROUPS_MIN)])
    )
    agent.held_back = _held_back(agent, groups)
    wanted = _front(agent, groups, size)
    dropped = [id for id in agent.window if id not in wanted]
    remove = (*agent.window.revoked, *dropped)
    add = tuple(
        reference(request, group, expected)
        for id, (request, group) in wanted.items()
        if agent.window.group_of(id) != group
    )
    known = agent.sent_order == order and agent.sent_wakes == agent.wakes
    if known and not remove and not add:
        return None
    snapshot, changed = agent.sent_order is None, None if known else order
    for id in dropped:
        agent.window.discard(id)
    agent.window.revoked.clear()
    for ref in add:
        agent.window.add(ref.id, ref.group)
    agent.sent_order, agent.sent_wakes = order, agent.wakes
    return QueueUpdate(
        epoch=epoch,
        snapshot=snapshot,
        order=changed,
        add=add,
        remove=remove,
        wake=None if known else agent.wakes,
    )


def _front(agent: Agent, groups: Groups, size: int) -> dict[RequestId, tuple[RequestMeta, GroupId]]:
    """The first `size` waiting requests of the agent's queue."""
    front: dict[RequestId, tuple[RequestMeta, GroupId]] = {}
    for id in agent.queue:
        if id in agent.held_back:
            continue
        for request in groups[id].members():
            if len(front) >= size:
                return front
            front[request.id] = (request, id)
    return front


def _held_back(agent: Agent, groups: Groups) -> dict[GroupId, None]:
    """Groups of which the agent is told nothing but their place, since lines of another base go on before them.

    A moment without such a line at hand would make the agent swap, although more of them are on their way.
    """
    found: dict[GroupId, None] = {}
    goes_on: ModelName | None = None
    for id in agent.queue:
        group = groups[id]
        base = agent.base(group.key.model)
        if goes_on is not None and base != goes_on:
            found[id] = None
        elif group.goes_on:
            goes_on = base
    return found


def append_to_window(
    agent: Agent,
    group: RequestGroup,
    request: RequestMeta,
    *,
    size: int,
    epoch: int,
    expected: Expected,
) -> QueueUpdate | None:
    """Send a request that has just joined a group of this agent, if it belongs in the window."""
    sent = agent.window.sent_of(group.id)
    others_all_sent = sent == group.released - 1
    if (
        group.id in agent.held_back
        or not others_all_sent
        or (sent == 0 and len(agent.window) >= size)
    ):
        return None
    agent.window.add(request.id, group.id)
    return QueueUpdate(epoch=epoch, add=(reference(request, group.id, expected),))
