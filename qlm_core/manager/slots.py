"""What an engine tells of itself whose every slot is taken: when one comes free, and how many would give theirs up.

Rates say how soon waiting requests start on average, and where dozens run that is when the next one starts. An engine with a
few slots is another matter: behind one long output, nothing starts until it ends, or gives way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from qlm_core.config import ExecutorConfig
from qlm_core.grouping import RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent
from qlm_core.model import GroupId

_FEW = 16
"""Up to so many outputs it is worth looking at each."""

EVICT_MARGIN_S = ExecutorConfig().evict_margin_s
"""How long before a request would be late laxer work gives way to it, by default: the solver does not know what agents use."""


@dataclass(frozen=True, slots=True)
class FullSlots:
    """An engine without a free slot.

    Attributes:
        next_s: seconds until one is expected to come free by itself.
        laxities_s: the targets of what runs, ascending; infinite for what owes no more than a first token that is out.
    """

    next_s: float
    laxities_s: tuple[float, ...]

    def laxer(self, ttft_s: float) -> int:
        """How many give way to a first token with that target."""
        return len(self.laxities_s) - bisect_right(self.laxities_s, ttft_s)


def full_slots(
    agent: Agent, groups: Mapping[GroupId, RequestGroup], estimators: Estimators, *, now_s: float
) -> FullSlots | None:
    """How an engine stands that has no slot free; None while one is, or while it cannot run anything."""
    state = agent.state
    profile = agent.profiles.get(state.awake_model) if state.awake_model is not None else None
    if profile is None or not state.ready or state.swapping_to is not None:
        return None
    if len(agent.held) < profile.max_num_seqs:
        return None
    laxities, ends_per_token = [], 0.0
    few = len(state.running) <= _FEW
    for one in state.running:
        group = groups.get(one.group)
        if group is None:
            continue
        key = group.key
        laxities.append(inf if key.first_only and one.produced_tokens else key.ttft_s)
        if few:
            ends_per_token += 1.0 / estimators.left_tokens(key, one.produced_tokens)
    rate = estimators.rate(estimators.profile(profile), None, now_s=now_s)
    next_s = rate.seconds_per_request
    if ends_per_token:
        next_s = rate.seconds_per_token * rate.batch / ends_per_token
    return FullSlots(next_s, tuple(sorted(laxities)))
