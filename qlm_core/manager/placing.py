"""Where groups stand without a planner: what is plain, and what planning need not look at.

A group that an idle instance takes at once is seated there. In a deep backlog a group that continues a full one lines up
behind it: nothing depends on its place until the next solve has found a better one. All others are placed by repair,
among the agents that matter to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

from qlm_core.grouping import Grouper, GroupKey, RequestGroup, waiting_groups
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent, Roster
from qlm_core.manager.snapshot import room
from qlm_core.model import AgentId, GroupId, ModelName

DEEP_BACKLOG_GROUPS = 500
"""From so many groups on, repairing the plan for each new one costs more than its place is worth."""


def backlog_is_deep(groups: Mapping[GroupId, RequestGroup], roster: Roster) -> bool:
    """Whether so many groups stand in queues that new ones should not be placed by repair."""
    if len(groups) < DEEP_BACKLOG_GROUPS:
        return False
    # Most groups of a busy fleet have no member left that waits.
    return sum([len(agent.queue) for agent in roster.agents]) >= DEEP_BACKLOG_GROUPS


def plannable(
    groups: Mapping[GroupId, RequestGroup], roster: Roster
) -> tuple[list[RequestGroup], list[Agent]]:
    """Groups with waiting members that some usable agent serves, and the usable agents, in stable order."""
    waiting = waiting_groups(groups.values())
    return [group for group in waiting if roster.can_take(group)], roster.agents


def homeless(
    groups: Mapping[GroupId, RequestGroup], agents: Mapping[AgentId, Agent]
) -> dict[GroupId, None]:
    """Groups with waiting members that stand in no known agent's queue, or of one that no longer serves their model."""
    found: dict[GroupId, None] = {}
    for id, group in groups.items():
        home = agents.get(group.home) if group.home is not None else None
        if group.waiting and (home is None or group.key.model not in home.profiles):
            found[id] = None
    return found


def free_seat(
    group: RequestGroup, roster: Roster, estimators: Estimators, *, now_s: float
) -> Agent | None:
    """The idle agent that takes all of a new group at once and is done with it first, if there is one.

    Nothing is gained by planning for such a group: it delays nobody, and would end later anywhere else. A group that was at
    home somewhere is only seated there, since it pays for a move.
    """
    model, waiting, home = group.key.model, group.waiting, group.home
    seat, earliest_s = None, inf
    for profile, agents in roster.engines.get(model, ()):
        agent = _freest(agents, ModelName(profile.base), home)
        if agent is None:
            continue
        batch = len(agent.held) + waiting
        if batch > room(profile, estimators, now_s=now_s)[0]:
            continue
        end_s = estimators.finish_s(
            estimators.profile(profile),
            group.key,
            batch=batch,
            context_tokens=agent.state.kv_used_tokens,
            now_s=now_s,
        )
        if end_s < earliest_s:
            seat, earliest_s = agent, end_s
    return seat


def _freest(alike: Sequence[Agent], base: ModelName, home: AgentId | None) -> Agent | None:
    """Of agents with one profile, its base awake and nobody in their queue, the one that holds the fewest requests."""
    found, fewest = None, inf
    for agent in alike:
        held, state = len(agent.held), agent.state
        if held >= fewest or agent.queue or state.awake_model != base or agent.wakes:
            continue
        if not state.ready or state.swapping_to or home not in (None, agent.id):
            continue
        found, fewest = agent, held
        if not held:
            break
    return found


def contenders(groups: Sequence[RequestGroup], agents: Sequence[Agent], *, new: int) -> list[Agent]:
    """The agents that matter to where new groups are put, in the order given.

    Those are the ones with a queue, or home to a group, or in the middle of something. Of the others, which differ in
    their free room alone if kind and model are the same, the freest do, one more than the `new` groups.
    """
    homes = {group.home: None for group in groups}
    alike: dict[tuple[int, ModelName | None], list[tuple[int, int]]] = {}
    kept: list[int] = []
    for number, agent in enumerate(agents):
        state = agent.state
        if agent.queue or agent.id in homes or not state.ready or state.swapping_to is not None:
            kept.append(number)
        else:
            same = alike.setdefault((id(agent.kind), state.awake_model), [])
            same.append((len(agent.held), number))
    for same in alike.values():
        kept += [number for _, number in sorted(same)[: new + 1]]
    return [agents[number] for number in sorted(kept)]


def line_up(
    group: RequestGroup,
    groups: Mapping[GroupId, RequestGroup],
    agents: Mapping[AgentId, Agent],
) -> Agent | None:
    """Put a group behind the one that it continues; None if that one stands in no queue."""
    ahead = groups.get(group.continues) if group.continues is not None else None
    home = agents.get(ahead.home) if ahead is not None and ahead.home is not None else None
    if ahead is None or home is None or not home.usable or ahead.id not in home.queue:
        return None
    home.queue.insert(home.queue.index(ahead.id) + 1, group.id)
    group.home = home.id
    return home


def split_large(
    groups: dict[GroupId, RequestGroup],
    agents: Mapping[AgentId, Agent],
    grouper: Grouper,
    size_of: Callable[[GroupKey], int],
) -> Iterator[tuple[RequestGroup, Agent]]:
    """Halve the groups in queues that are twice as large as they should be; gives each new half, and where it stands."""
    large = [one for one in waiting_groups(groups.values()) if one.fresh + one.unreleased > 1]
    for group in large:
        home = agents.get(group.home) if group.home is not None else None
        if home is None or group.waiting < 2 * size_of(group.key):
            continue
        half = grouper.halve(group)
        groups[half.id] = half
        home.queue.insert(home.queue.index(group.id) + 1, half.id)
        yield half, home
