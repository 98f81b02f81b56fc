"""How close the engine model comes to a measured run: replay its requests and compare.

The measured requests are replayed at the times the real engine received them, with the output
lengths they really had; what remains is the engine's timing, which is what is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from qlm_core.profile import EngineProfile
from qlm_core.sim.batch import ContinuousBatch, OutcomeKind, SchedulingPolicy

RUN_S_MAX = 90 * 86_400.0
"""No measurement takes longer; arrivals farther apart are of different clocks."""

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRequest:
    """One request of a measured run.

    Attributes:
        arrival_s: when the engine received it; only differences between requests count.
        ttft_s: from then to its first token.
        tpot_s: mean time between its output tokens after the first; 0 with a single token.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float

    @property
    def finish_s(self) -> float:
        """When its last token came."""
        return self.arrival_s + self.ttft_s + self.tpot_s * (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One quantity, measured and simulated: means and quantiles at `QUANTILES`, in seconds."""

    measured: float
    simulated: float
    measured_quantiles: tuple[float, ...] = ()
    simulated_quantiles: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """Relative error of the simulated value; NaN where the measured one is 0."""
        return self.simulated / self.measured - 1.0 if self.measured else nan


@dataclass(frozen=True, slots=True, kw_only=True)
class LogComparison:
    """A measured run beside its replay; `replayed` is in the order of the log."""

    makespan: Contrast
    ttft: Contrast
    tpot: Contrast
    preemptions: int
    replayed: tuple[MeasuredRequest, ...]


def replay_log(
    profile: EngineProfile,
    log: Sequence[MeasuredRequest],
    *,
    policy: SchedulingPolicy = "fcfs",
    prefix_caching: bool = True,
) -> tuple[tuple[MeasuredRequest, ...], int]:
    """The same requests as the engine model serves them, and the number of preemptions.

    Raises:
        ValueError: a request can never fit the profile's KV cache, or the last one arrives more
            than `RUN_S_MAX` after the first.
    """
    # The engine's clock starts with the first arrival: that of a log may count from 1970.
    origin_s = min((request.arrival_s for request in log), default=0.0)
    for index, request in enumerate(log):
        if not request.arrival_s - origin_s <= RUN_S_MAX:
            raise ValueError(
                f"log[{index}].arrival_s: {request.arrival_s:.15g} is more than {RUN_S_MAX:g} s after "
                "the first arrival. Give seconds of one clock, and a run at a time."
            )
    engine = ContinuousBatch(profile, policy=policy, prefix_caching=prefix_caching)
    order = sorted(range(len(log)), key=lambda index: (log[index].arrival_s, index))
    for index in order:
        request = log[index]
        engine.add(
            str(index),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            now_s=request.arrival_s - origin_s,
        )
    first_s = [0.0] * len(log)
    finish_s = [0.0] * len(log)
    while (at_s := engine.next_event_s) is not None:
        for outcome in engine.advance(at_s):
            if outcome.kind is OutcomeKind.FIRST_TOKEN:
                first_s[int(outcome.request_id)] = outcome.at_s
            elif outcome.kind is OutcomeKind.FINISHED:
                finish_s[int(outcome.request_id)] = outcome.at_s
    replayed = tuple(
        MeasuredRequest(
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            ttft_s=first - (request.arrival_s - origin_s),
            tpot_s=(finish - first) / max(request.output_tokens - 1, 1),
        )
        for request, first, finish in zip(log, first_s, finish_s, strict=True)
    )
    return replayed, engine.preemptions


def compare_with_log(
    profile: EngineProfile,
    log: Sequence[MeasuredRequest],
    *,
    policy: SchedulingPolicy = "fcfs",
    prefix_caching: bool = True,
) -> LogComparison:
    """Replay a measured run and set makespan, TTFT and TPOT side by side.

    The makespan is the time from the first arrival to the last token.

    Raises:
        ValueError: the log is empty, or as `replay_log`.
    """
    if not log:
        raise ValueError("log: it holds no request. Give a log with at least one.")
    replayed, preemptions = replay_log(profile, log, policy=policy, prefix_caching=prefix_caching)
    return LogComparison(
        makespan=Contrast(
            measured=_makespan_s(log),
            simulated=_makespan_s(replayed),
        ),
        ttft=_contrast([r.ttft_s for r in log], [r.ttft_s for r in replayed]),
        tpot=_contrast(
            [r.tpot_s for r in log if r.output_tokens > 1],
            [r.tpot_s for r in replayed if r.output_tokens > 1],
        ),
        preemptions=preemptions,
        replayed=replayed,
    )


def _makespan_s(requests: Sequence[MeasuredRequest]) -> float:
    first_s = min(request.arrival_s for request in requests)
    return max(request.finish_s for request in requests) - first_s


def _contrast(measured: list[float], simulated: list[float]) -> Contrast:
    if not measured:
        return Contrast(measured=0.0, simulated=0.0)
    return Contrast(
        measured=float(np.mean(measured)),
        simulated=float(np.mean(simulated)),
        measured_quantiles=tuple(float(q) for q in np.quantile(measured, QUANTILES)),
        simulated_quantiles=tuple(float(q) for q in np.quantile(simulated, QUANTILES)),
    )
