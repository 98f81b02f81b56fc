"""What the same requests would have met on the same GPUs without QLM: one queue, first come, first served.

Nothing is started for that. It is the policy `fcfs` of `qlm sim` on the fleet of a configuration, with the engine model that the
agents' sim engines have too; the processes between client and engine take next to no time there, which is in its favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from qlm.report import Fate, Outcome, Report, summarise
from qlm.simulations import demo_scenario
from qlm_core.config import Config
from qlm_core.sim.policies import policy_named
from qlm_core.sim.record import RunRecord
from qlm_core.sim.workload import WorkloadRequest
from qlm_core.sim.world import World

POLICY = "fcfs"


def served_in_turn(
    config: Config, requests: Sequence[WorkloadRequest], *, seed: int
) -> tuple[Report, list[Outcome]]:
    """The figures and outcomes of a first-come-first-served fleet; no outcome has an estimate.

    Args:
        requests: in order of arrival.
    """
    scenario = demo_scenario(config)
    lengths = {name: model.max_model_len for name, model in config.models.items()}
    world = World(scenario, policy_named(POLICY), iter(requests), seed=seed, model_len=lengths)
    record = world.run()
    outcomes = outcomes_of(record, requests)
    report = summarise(
        outcomes,
        {name: config.slo_class(name).slo for name in config.slo_classes},
        sent=len(requests),
        elapsed_s=record.last_end_s,
        evictions=record.evictions,
        swaps=record.swaps,
    )
    return report, outcomes


def outcomes_of(record: RunRecord, requests: Sequence[WorkloadRequest]) -> list[Outcome]:
    """A simulated run as a client would have seen it: one outcome for each request, in order of arrival."""
    outcomes = []
    for number, request in enumerate(requests):
        fate = Fate.FINISHED if record.finished[number] else Fate.FAILED
        outcomes.append(
            Outcome(
                model=request.model,
                slo_class=request.slo_class,
                sent_s=request.arrival_s,
                fate=fate if record.ended[number] else Fate.LOST,
                ttft_s=_known(record.ttft_s[number]),
                e2e_s=_known(record.e2e_s[number]),
                pause_s=_known(record.pause_s[number]),
                output_tokens=request.output_tokens,
            )
        )
    return outcomes


def _known(seconds: float) -> float | None:
    return None if isnan(seconds) else seconds
