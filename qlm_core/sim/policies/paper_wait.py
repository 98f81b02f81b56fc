"""The paper's waiting-time estimator (§6), beside ours, on the same run.

W_q is the output tokens ahead over the token throughput (2), plus the completion of the batch and the swap wherever
the model changes (10). Lengths and throughput come from offline profiling, and requests that run already are charged like
those that wait. `Watched` is the production Manager with both estimates of every request noted at its arrival, and the
wait that came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qlm_core.manager import Manager
from qlm_core.manager.events import Effect, Event, GatewaySaid, TellGateway
from qlm_core.manager.snapshot import swap_in_s
from qlm_core.messages import Arrived, EstimateGiven, FirstToken
from qlm_core.model import Estimate, ModelName, RequestId, RequestMeta
from qlm_core.profile import EngineProfile
from qlm_core.sim.lengths import SHAREGPT_OUTPUT, SHAREGPT_PROMPT
from qlm_core.sim.policies.base import Brain, Context

_LONGEST_OUTPUT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class MeanLengths:
    """What offline profiling has found: mean tokens of prompts and outputs."""

    prompt_tokens: float
    output_tokens: float


SHAREGPT = MeanLengths(SHAREGPT_PROMPT.mean, SHAREGPT_OUTPUT.mean)


@dataclass(slots=True)
class Waits:
    """Both estimates of one request, and its wait once it is known."""

    ours: Estimate
    paper_s: float
    realised_s: float | None = None


class Watched:
    """A Manager whose estimates are noted."""

    def __init__(self, manager: Manager, waits: dict[RequestId, Waits], lengths: MeanLengths):
        self._manager = manager
        self._waits = waits
        self._lengths = lengths

    @property
    def wakeup_s(self) -> float | None:
        """The Manager's."""
        return self._manager.wakeup_s

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """The Manager's answer, noted."""
        effects = self._manager.handle(event, now_s=now_s)
        match event:
            case GatewaySaid(_, Arrived(request)):
                for effect in effects:
                    match effect:
                        case TellGateway(_, EstimateGiven(id, estimate)) if id == request.id:
                            paper_s = paper_wait_s(self._manager, request, self._lengths)
                            paper_s += now_s - request.arrival_s
                            self._waits[id] = Waits(estimate, paper_s)
            case GatewaySaid(_, FirstToken(id, ttft_s)):
                if id in self._waits:
                    self._waits[id].realised_s = ttft_s
            case _:
                pass
        return effects


def watched(
    build: Callable[[Context], Manager],
    waits: dict[RequestId, Waits],
    lengths: MeanLengths = SHAREGPT,
) -> Callable[[Context], Brain]:
    """A policy's `build` that notes into `waits`; `lengths` is what the paper's estimator knows."""
    return lambda context: Watched(build(context), waits, lengths)


def paper_wait_s(manager: Manager, request: RequestMeta, lengths: MeanLengths) -> float:
    """Seconds that the paper's equations give a request at its place in its virtual queue."""
    held = manager.book.get(request.id)
    agent = manager.agents.get(held.group.home) if held is not None and held.group.home else None
    if held is None or agent is None:
        return 0.0
    model = agent.model
    wait_s = 0.0
    if model is not None and model in agent.profiles:
        wait_s = len(agent.held) * _pace_s(agent.profiles[model], lengths)
    for id in agent.queue:
        group = manager.groups[id]
        profile = agent.profiles[group.key.model]
        if profile.base != model:
            if model is not None and model in agent.profiles:
                old = agent.profiles[model]
                wait_s += _completion_s(old, lengths) + old.sleep_s
            wait_s += swap_in_s(profile, agent.tier(group.key.model))
            model = ModelName(profile.base)
        if group is held.group:
            return wait_s + (group.waiting - 1) * _pace_s(profile, lengths)
        wait_s += group.waiting * _pace_s(profile, lengths)
    return wait_s


def _pace_s(profile: EngineProfile, lengths: MeanLengths) -> float:
    """E[O] / Θ."""
    output = lengths.output_tokens
    return output / profile.decode_throughput(lengths.prompt_tokens, output)


def _completion_s(profile: EngineProfile, lengths: MeanLengths) -> float:
    """The longest output at the pace of a full batch (4, 5)."""
    prompt, output = lengths.prompt_tokens, lengths.output_tokens
    batch = profile.batch_size(prompt, output)
    return _LONGEST_OUTPUT_TOKENS * profile.steady_iteration_s(batch, prompt, output)
