"""How many instances of each GPU the fleet needs: what autoscalers go by.

Two things are asked of a GPU. What *waits* has to start in time: how many more instances that takes, or how many fewer do, was
found with the last bound (`qlm_core.planning.needs`), each GPU for itself. And what *runs* has to go on running: no instance that
is busy is advised away, however lax its work. Without a bound of what waits now, only the second is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from qlm_core.manager.fleet import Agent
from qlm_core.manager.machine import Manager
from qlm_core.model import ModelName

BUSY_SHARE = 0.8
"""Instances are enough if no more of their batches than this share is taken, so that a gap is left for what comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAdvice:
    """What is advised of one GPU.

    Attributes:
        instances: how many may be planned on now.
        needed: how many it takes, the other GPUs as they are.
        busy: how many their work would fill.
        saves_cost: what one more would take off the objective, at most.
        saves_late_weight: the same in weighted late requests.
    """

    gpu: str
    instances: int
    needed: int
    busy: float
    saves_cost: float = 0.0
    saves_late_weight: float = 0.0


def advice(manager: Manager, *, now_s: float) -> tuple[GpuAdvice, ...]:
    """The advice for each GPU there are instances of, in order of name."""
    of_gpu: dict[str, list[Agent]] = {}
    for agent in manager.roster.agents:
        of_gpu.setdefault(agent.gpu, []).append(agent)
    plan = manager.planner.in_force
    waits = any(group.waiting for group in manager.groups.values())
    priced = {one.gpu: one for one in plan.capacity} if plan is not None and waits else {}
    found = []
    for gpu, agents in sorted(of_gpu.items()):
        busy = sum(_busy(manager, agent, now_s) for agent in agents)
        present, value = len(agents), priced.get(gpu)
        running = min(present, ceil(busy / BUSY_SHARE - 1e-9))
        if value is not None and value.more is not None:
            needed = max(running, value.instances + value.more)
        else:
            # Late work of which nobody knows what it takes: at least nothing is taken away.
            late = plan is not None and waits and plan.late_weight > 0.0
            unsure = late if value is None else value.saves_cost > 0.0
            needed = present if unsure else running
        found.append(
            GpuAdvice(
                gpu=gpu,
                instances=present,
                needed=max(0, needed),
                busy=busy,
                saves_cost=value.saves_cost if value else 0.0,
                saves_late_weight=value.saves_late_weight if value else 0.0,
            )
        )
    return tuple(found)


def _busy(manager: Manager, agent: Agent, now_s: float) -> float:
    """The share of an instance's steady batch that is taken, by what it holds and what stands in its queue; 1 at most."""
    if agent.state.swapping_to is not None:
        return 1.0
    waiting = sum(manager.groups[id].waiting for id in agent.queue if id in manager.groups)
    taken = len(agent.held) + waiting
    if not taken:
        return 0.0
    model = agent.state.awake_model or ModelName("")
    profile = agent.profiles.get(model)
    if profile is None:
        return 1.0
    known = manager.estimators
    return min(1.0, taken / max(1.0, known.rate(known.profile(profile), None, now_s=now_s).batch))
