"""The policies by name, and the LSOs that can be taken out of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from qlm_core.errors import ConfigError
from qlm_core.sim.instance import EngineOptions
from qlm_core.sim.policies import clairvoyant, ours, paper, shared, turns
from qlm_core.sim.policies.arrival import ByClass, LeastLoaded, RoundRobin
from qlm_core.sim.policies.base import Policy
from qlm_core.sim.policies.shepherd import Shepherd

REMOVABLE = ("eviction", "kv-swap", "warm-start", "load-balancing")

_CALM = {"eviction": False}
_PLAIN = EngineOptions(scheduling="fcfs", kv_swap=False)

_POLICIES = (
    Policy(
        name="qlm",
        about="request groups, virtual queues and the planner: what the services run",
        build=ours.manager,
    ),
    Policy(
        name="qlm-paper",
        about="as published: hard-constraint program on a predicted violation, else EDF",
        build=paper.paper_manager,
    ),
    Policy(
        name="edf",
        about="earliest deadline first, one queue for the fleet",
        build=shared.Edf,
        engine=_PLAIN,
        executor_changes=_CALM,
    ),
    Policy(
        name="edf-evict",
        about="earliest deadline first with eviction for urgent arrivals",
        build=shared.EdfEvict,
    ),
    Policy(
        name="edf-model",
        about="earliest deadline first within the awake model, with eviction",
        build=shared.EdfModel,
    ),
    Policy(
        name="least-slack",
        about="least slack first (due time less expected work), with eviction",
        build=shared.LeastSlack,
    ),
    Policy(
        name="turns",
        about="models take turns, as long as the tightest target that turns can keep allows",
        build=turns.Turns,
        executor_changes=turns.EXECUTOR_CHANGES,
    ),
    *(
        Policy(
            name=f"turns-{turn_s}",
            about=f"models take turns of {turn_s} s, the request due first goes first",
            build=partial(turns.Turns, turn_s=float(turn_s)),
            executor_changes=turns.EXECUTOR_CHANGES,
        )
        for turn_s in (3, 6, 9, 15)
    ),
    Policy(
        name="fcfs",
        about="vLLM: first come first served, one queue for the fleet",
        build=shared.SharedQueue,
        engine=_PLAIN,
        executor_changes=_CALM,
    ),
    Policy(
        name="round-robin",
        about="vLLM behind a round-robin router",
        build=RoundRobin,
        engine=_PLAIN,
        takes_all=True,
        executor_changes=_CALM,
    ),
    Policy(
        name="least-loaded",
        about="vLLM behind a least-loaded router",
        build=LeastLoaded,
        engine=_PLAIN,
        takes_all=True,
        executor_changes=_CALM,
    ),
    Policy(
        name="vllm-priority",
        about="vLLM's priority scheduling by SLO class behind a least-loaded router",
        build=ByClass,
        engine=replace(_PLAIN, scheduling="priority"),
        takes_all=True,
        executor_changes=_CALM,
    ),
    Policy(
        name="shepherd",
        about="instances given to streams, fixed batches, no continuous batching",
        build=Shepherd,
        engine=_PLAIN,
        executor_changes=_CALM | {"pull_ahead": 0},
    ),
    Policy(
        name="clairvoyant",
        about="ours, knowing all requests and true output lengths beforehand: a reference",
        build=clairvoyant.Clairvoyant,
        executor_changes=clairvoyant.EXECUTOR_CHANGES,
    ),
)
_BY_NAME = {policy.name: policy for policy in _POLICIES}


def policy_names() -> tuple[str, ...]:
    """All policies, ours first."""
    return tuple(_BY_NAME)


def policy_named(name: str, *, without: Sequence[str] = ()) -> Policy:
    """A policy, with LSOs taken out.

    Raises:
        ConfigError: an unknown policy or LSO.
    """
    policy = _BY_NAME.get(name)
    if policy is None:
        raise ConfigError(f"policy: {name!r} is unknown. Use one of {', '.join(_BY_NAME)}.")
    for lso in without:
        if lso not in REMOVABLE:
            raise ConfigError(f"without: {lso!r} is unknown. Use one of {', '.join(REMOVABLE)}.")
        policy = _without(policy, lso)
    return policy


def _without(policy: Policy, lso: str) -> Policy:
    if lso == "eviction":
        return replace(policy, executor_changes=policy.executor_changes | _CALM)
    if lso == "kv-swap":
        return replace(policy, engine=replace(policy.engine, kv_swap=False))
    if lso == "warm-start":
        return replace(policy, engine=replace(policy.engine, warm_start=False))
    if policy.build is not ours.manager:
        raise ConfigError("without: only 'qlm' has load-balancing to take out.")
    return replace(policy, build=ours.manager_without_balancing)
