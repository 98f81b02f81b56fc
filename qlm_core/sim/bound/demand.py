"""What a workload asks of a fleet, and when it is in time: the numbers that bounds are made of.

Times are those of engines, on the run's clock: a payload takes a message to get to one, and what comes out of it
another to get back. Instances that are alike are one *kind*; a kind has a base for each model that can be awake there,
and its LoRA adapters are requests of their base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from qlm_core.errors import ConfigError
from qlm_core.model import ModelName, ModelTier
from qlm_core.planning.problem import Bools, Floats, Ints
from qlm_core.profile import EngineProfile
from qlm_core.sim.bound.costs import (
    Asked,
    best_prices,
    first_work_s,
    least_first_s,
    least_rest_s,
    rest_work_s,
)
from qlm_core.sim.instance import EngineOptions, Instance
from qlm_core.sim.scenario import InstanceSpec, Scenario, instances, room_tokens
from qlm_core.sim.workload import WorkloadRequest, fitted

PAIRS_MAX = 20_000_000
"""Most pairs of a request and a kind of instance."""

_ROUNDING_S = 1e-6
"""Instants are rounded to nanoseconds here and there on their way; every window is longer by so much at both ends."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """Instances that are alike, and what requests take there. Arrays of requests are [N].

    Attributes:
        awake: [instances] the base awake at the start.
        swap_s: [B, B] seconds in which one base gives way to another and nothing is computed.
        begin_s: from when a base is awake until an engine can begin: agents ask for payloads of what is awake alone.
        ready_s: [B] when each base can first be awake.
        able: whether the request, alone here with its model awake as it comes, is in time.
        base: the request's base; 0 where it is not able.
        first_work_s, rest_work_s: engine seconds of the first token and of all others that are promised.
        first_s, rest_s: seconds that pass meanwhile at the least.
    """

    bases: tuple[str, ...]
    awake: tuple[int, ...]
    swap_s: Floats
    begin_s: float
    ready_s: Floats
    able: Bools
    base: Ints
    first_work_s: Floats
    rest_work_s: Floats
    first_s: Floats
    rest_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """Requests and the kinds of instances. All arrays are [N].

    Attributes:
        release_s: the first instant at which an engine can begin.
        first_due_s: the last at which the first token may come out, for all that follows to be in time as well.
        due_s: the last at which the whole output may be out; infinite where the first token is all that is promised.
        weight: of the request's class.
    """

    release_s: Floats
    first_due_s: Floats
    due_s: Floats
    weight: Floats
    kinds: tuple[Kind, ...]

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.release_s)

    @property
    def last_due_s(self) -> Floats:
        """[N] the end of all that is promised."""
        return np.where(np.isfinite(self.due_s), self.due_s, self.first_due_s)

    @property
    def able(self) -> Bools:
        """[N] whether a request is in time on some instance that has nothing else to do."""
        return np.asarray(np.logical_or.reduce([kind.able for kind in self.kinds]))


def demand_of(
    scenario: Scenario,
    workload: Iterable[WorkloadRequest],
    *,
    model_len: Mapping[str, int] | None = None,
) -> Demand:
    """The numbers of a workload on a scenario's fleet, requests cut to fit as the simulated world cuts them.

    Raises:
        ConfigError: there are no requests, or more than a bound can be found for.
    """
    specs = instances(scenario.fleet, scenario.profiles, scenario.adapters)
    kinds: dict[tuple[tuple[EngineProfile, ...], int], list[InstanceSpec]] = {}
    for spec in specs:
        kinds.setdefault((spec.profiles, spec.host_memory_bytes), []).append(spec)
    limits = model_len or {}
    rooms = {
        model: min(room, limits.get(model, room)) for model, room in room_tokens(specs).items()
    }
    asked: list[WorkloadRequest] = []
    for request in workload:
        if len(asked) >= PAIRS_MAX // len(kinds):
            raise ConfigError(
                f"bound: more than {len(asked)} requests on {len(kinds)} kinds of instances. "
                "Ask for fewer requests, or for no bound."
            )
        asked.append(fitted(request, rooms[request.model]))
    if not asked:
        raise ConfigError(f"{scenario.name}: no requests. Give it some to serve.")
    windows = _Windows(scenario, asked)
    return Demand(
        release_s=windows.release_s,
        first_due_s=windows.first_due_s,
        due_s=windows.due_s,
        weight=windows.weight,
        kinds=tuple(_kind(alike, windows) for alike in kinds.values()),
    )


class _Windows:
    """Lengths and targets of requests as arrays."""

    def __init__(self, scenario: Scenario, asked: list[WorkloadRequest]):
        classes = {one.name: one for one in scenario.classes}
        slos = [classes[one.slo_class].slo for one in asked]
        self.link_s = scenario.simulation.link_s
        self.models = np.array([one.model for one in asked])
        self.weight = np.array([classes[one.slo_class].weight for one in asked])
        self.prompt = np.array([float(one.prompt_tokens) for one in asked])
        self.output = np.array([float(one.output_tokens) for one in asked])
        arrival_s = np.array([one.arrival_s for one in asked])
        ttft_s = np.array([one.ttft_s for one in slos])
        e2e_s = np.array([inf if one.e2e_s is None else one.e2e_s for one in slos])
        tpot_s = np.array([inf if one.tpot_s is None else one.tpot_s for one in slos])
        after = np.maximum(self.output - 1.0, 0.0)
        # An output of one token has no pace.
        self.paced_s = np.where(after > 0, tpot_s * np.maximum(after, 1.0), inf)
        within_s = np.minimum(e2e_s, ttft_s + self.paced_s)
        early_s, late_s = self.link_s - _ROUNDING_S, _ROUNDING_S - self.link_s
        self.release_s = arrival_s + early_s
        self.first_due_s = arrival_s + np.minimum(ttft_s, e2e_s) + late_s
        self.due_s = arrival_s + within_s + late_s


def _kind(specs: list[InstanceSpec], windows: _Windows) -> Kind:
    spec = specs[0]
    n = len(windows.release_s)
    profiles = {profile.model: profile for profile in spec.profiles}
    bases = tuple(profile.model for profile in spec.profiles if not profile.adapter_of)
    found = {name: np.zeros(n) for name in ("first_work_s", "rest_work_s", "rest_s")}
    found["first_s"] = np.full(n, inf)
    base = np.zeros(n, np.int64)
    for number, name in enumerate(bases):
        family = [profile.model for profile in spec.profiles if profile.base == name]
        mine = np.flatnonzero(np.isin(windows.models, family))
        if mine.size:
            base[mine] = number
            for key, values in _least(profiles[name], windows, mine).items():
                found[key][mine] = values
    last_s = np.minimum(windows.first_due_s, windows.due_s - found["rest_s"])
    in_time = windows.release_s + found["first_s"] <= last_s
    able = in_time & (found["rest_s"] <= windows.paced_s + _ROUNDING_S)
    return Kind(
        bases=bases,
        awake=tuple(bases.index(one.awake) for one in specs),
        swap_s=_swap_s(spec, bases, profiles),
        begin_s=2.0 * windows.link_s,
        ready_s=np.min([_ready_s(one, bases, profiles) for one in specs], axis=0),
        able=able,
        base=base,
        **{key: np.where(able, values, 0.0) for key, values in found.items()},
    )


def _least(profile: EngineProfile, windows: _Windows, mine: Ints) -> dict[str, Floats]:
    """What the requests of one engine take."""
    whole = np.isfinite(windows.due_s[mine])
    release_s = windows.release_s[mine]
    first_within_s = windows.first_due_s[mine] - release_s
    asked = Asked(
        prompt=windows.prompt[mine],
        output=windows.output[mine],
        whole=whole,
        first_within_s=np.maximum(first_within_s, _ROUNDING_S),
        all_within_s=np.where(whole, np.maximum(windows.due_s[mine] - release_s, _ROUNDING_S), inf),
    )
    prices = best_prices(profile, asked)
    rest_s = least_rest_s(profile, asked, link_s=windows.link_s)
    return {
        "first_work_s": first_work_s(prices, asked),
        "rest_work_s": rest_work_s(profile, prices, asked),
        "first_s": least_first_s(profile, asked),
        "rest_s": np.where(whole, rest_s, 0.0),
    }


def _swap_s(
    spec: InstanceSpec, bases: tuple[str, ...], profiles: dict[str, EngineProfile]
) -> Floats:
    """[B, B] the shortest swap from one base to another: from host memory, unless its weights are more than that holds."""
    sleep_s = np.array([profiles[base].sleep_s for base in bases])
    wake_s = np.array(
        [
            min(profiles[base].wake_s, profiles[base].cold_s)
            if profiles[base].host_memory_bytes <= spec.host_memory_bytes
            else profiles[base].cold_s
            for base in bases
        ]
    )
    return np.asarray(sleep_s[:, None] + wake_s[None, :])


def _ready_s(
    spec: InstanceSpec, bases: tuple[str, ...], profiles: dict[str, EngineProfile]
) -> Floats:
    """[B] when each base can first be awake: one that is cold at the start has to come from storage, ahead of its swap
    or in it."""
    tiers = dict(Instance(spec, EngineOptions()).tiers)
    leave_s = min(profiles[base].sleep_s for base in bases)
    return np.array(
        [
            leave_s + profiles[base].cold_s if tiers[ModelName(base)] is ModelTier.COLD else 0.0
            for base in bases
        ]
    )
