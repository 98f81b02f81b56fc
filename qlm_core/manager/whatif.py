"""What would change for the fleet as it is now with other instances: more of a GPU, or fewer.

Nothing of the Manager changes. What waits is planned twice, in the same way: on the agents there are, and on those there would
be. One that is added is like those of its GPU, up and empty, with a model awake that is waited for: how long it takes to start is
not in it. Those that are taken away are the least busy. Taking the question down is quick; answering it needs nothing of the
Manager any more and may go on beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlm_core.errors import InvalidRequest
from qlm_core.manager.fleet import Agent, Roster, Window
from qlm_core.manager.machine import Manager
from qlm_core.manager.placing import plannable
from qlm_core.manager.snapshot import Snapshot
from qlm_core.model import AgentId, InstanceState, ModelName
from qlm_core.nearest import did_you_mean
from qlm_core.planning import NOTHING_LOADED, Limits, Plan, Problem, evaluate, greedy, repair
from qlm_core.planning.needs import dealt
from qlm_core.planning.score import late_probability
from qlm_core.planning.search import search

GPUS_MAX, INSTANCES_MAX = 100, 1_000
"""So many kinds of GPU in one question, and instances more or fewer of each."""

_MOVES = 5_000
"""Moves tried for each of the two plans."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What waits and who there is for it, with or without the change.

    Attributes:
        instances: by GPU.
        present: where groups stand in the queues now.
        of_class: [N] the SLO class of each group of the problem.
        unplaced: waiting requests whose model nobody serves.
    """

    instances: dict[str, int]
    snapshot: Snapshot
    present: Plan
    of_class: tuple[str, ...]
    unplaced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The fleet as it is and as it would be."""

    changes: dict[str, int]
    before: Side
    after: Side

    def answer(self) -> Json:
        """Both planned, as plain data (docs/api.md). Takes a moment, and the same one answers the same."""
        return {
            "changes": self.changes,
            "before": _told(self.before),
            "after": _told(self.after),
        }


def question(manager: Manager, changes: Mapping[str, int], *, now_s: float) -> Question:
    """Take the present state down, with `changes` to the number of instances of each GPU.

    Raises:
        InvalidRequest: a GPU that there is none of, or more taken away than there are.
    """
    agents = manager.roster.agents
    changed = _changed(manager, changes)
    return Question(
        changes=dict(changes),
        before=_side(manager, agents, now_s),
        after=_side(manager, changed, now_s),
    )


def _changed(manager: Manager, changes: Mapping[str, int]) -> list[Agent]:
    agents = manager.roster.agents
    if not changes or len(changes) > GPUS_MAX:
        raise InvalidRequest("changes", "none or too many", f"Give 1 to {GPUS_MAX} kinds of GPU.")
    found = list(agents)
    for gpu, more in changes.items():
        alike = [agent for agent in agents if agent.gpu == gpu]
        if not alike:
            known = sorted({agent.gpu: None for agent in agents})
            raise InvalidRequest(
                "changes",
                f"no instance has the GPU {gpu[:64]!r}, so nobody knows what one more would do",
                f"Use one of {', '.join(known) or 'those that join'}.{did_you_mean(gpu, known)}",
            )
        if not -len(alike) <= more <= INSTANCES_MAX:
            raise InvalidRequest(
                "changes",
                f"{gpu}: {more} is out of range",
                f"Take away at most {len(alike)}, or add at most {INSTANCES_MAX}.",
            )
        if more > 0:
            models = _awake(manager, alike[0], more)
            found += [_newcomer(alike[0], number, model) for number, model in enumerate(models)]
        else:
            idlest = sorted(alike, key=lambda agent: (len(agent.held), len(agent.queue)))[:-more]
            gone = {agent.id: None for agent in idlest}
            found = [agent for agent in found if agent.id not in gone]
    if not found:
        raise InvalidRequest("changes", "no instance is left", "Leave one.")
    return found


def _awake(manager: Manager, like: Agent, more: int) -> list[ModelName]:
    """The models that newcomers have awake, in the proportion in which they are waited for."""
    models = list(dict.fromkeys(like.base(model) for model in like.profiles))
    wanted = dict.fromkeys(models, 0.0)
    for group in manager.groups.values():
        if group.key.model in like.profiles:
            wanted[like.base(group.key.model)] += group.waiting
    order = dealt(list(wanted.values()), more)
    return [models[0 if one == NOTHING_LOADED else one] for one in order]


def _newcomer(like: Agent, number: int, model: ModelName) -> Agent:
    """An instance like another one that has nothing to do yet; its kind, so what it takes to wake a model, is the same."""
    made = copy(like)
    made.id = AgentId(f"{like.gpu}+{number + 1}")
    made.queue, made.held, made.held_back, made.window = [], {}, {}, Window()
    made.state = InstanceState(ready=True, awake_model=model, tiers=like.state.tiers)
    return made


def _side(manager: Manager, agents: list[Agent], now_s: float) -> Side:
    groups, usable = plannable(manager.groups, Roster(agents))
    snapshot = manager.planner.snapshot((groups, usable), manager.estimators, now_s=now_s)
    return Side(
        instances=dict(sorted(Counter(agent.gpu for agent in agents).items())),
        snapshot=snapshot,
        present=snapshot.to_plan({agent.id: agent.queue for agent in usable}),
        of_class=tuple(group.key.slo_class for group in groups),
        unplaced=sum(group.waiting for group in manager.groups.values())
        - sum(group.waiting for group in groups),
    )


def _told(side: Side) -> Json:
    problem, shift_s = side.snapshot.problem, side.snapshot.shift_s
    plan = planned(problem, side.present)
    score = evaluate(problem, plan)
    kind = np.zeros(problem.groups, np.int64)
    for number, queue in enumerate(plan):
        kind[list(queue)] = problem.queue_class[number]
    index = np.arange(problem.groups)
    lateness_s = score.end_s + problem.tail_s[index, kind] - problem.due_s
    late = problem.group_requests * late_probability(lateness_s, problem.ramp_s)
    start_s = np.maximum(0.0, score.start_s - shift_s)
    end_s = np.maximum(0.0, score.end_s - shift_s)
    classes: dict[str, Json] = {}
    for name in dict.fromkeys(side.of_class):
        mine = np.array([one == name for one in side.of_class])
        requests = problem.group_requests[mine]
        mean_s = ((start_s + end_s) / 2.0)[mine]
        classes[name] = {
            "waiting": int(requests.sum()),
            "expected_late": round(float(late[mine].sum()), 2),
            "wait_mean_s": round(float((mean_s * requests).sum() / max(1, requests.sum())), 3),
            "wait_longest_s": round(float(end_s[mine].max()), 3),
        }
    return {
        "instances": side.instances,
        "late_weight": round(score.late_weight, 3),
        "swaps": score.swaps,
        "swap_s": round(score.swap_s, 3),
        "unplaced": side.unplaced,
        "classes": classes,
    }


def planned(problem: Problem, present: Plan) -> Plan:
    """A good plan: the better of the one in force and one from nothing, improved for a while."""
    if not problem.groups:
        return tuple(() for _ in range(problem.queues))
    starts = (repair(problem, present), greedy(problem))
    start = min(starts, key=lambda plan: evaluate(problem, plan).objective)
    found = search(problem, Limits(work=_MOVES), seed=0, clock=lambda: 0.0, start=start).plan
    assert found is not None
    return found
