"""How well waits are foretold: ours and the paper's estimator, by number of request groups (Fig. 18) and by workload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import paper_published as published
from qlm_core.model import RequestId
from qlm_core.sim.policies import policy_named
from qlm_core.sim.policies.ours import manager
from qlm_core.sim.policies.paper_wait import SHAREGPT, MeanLengths, Waits, watched
from qlm_core.sim.report import r_squared
from qlm_core.sim.scenario import requests, scenario_from_mapping
from qlm_core.sim.workload import WorkloadRequest
from qlm_core.sim.world import World

GROUPS = (1, 2, 3, 4, 5, 6, 7, 8)
MODELS = ("mistral-7b", "vicuna-13b", "llama-2-70b")
GROUP_REQUESTS = 500
"""δ = 4 average batches of Vicuna-13B on an A100."""
HISTORY_REQUESTS = 2000
_HISTORY_RPS = 3.0
_QUEUE_FROM_S = 800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How estimates made at arrival compare with the waits that followed."""

    requests: int
    r2: float | None
    paper_r2: float | None
    mape: float
    paper_mape: float
    coverage_p50: float
    coverage_p90: float


def accuracy(waits: Iterable[Waits]) -> Accuracy:
    """Compare all requests that got a first token."""
    known = [one for one in waits if one.realised_s is not None]
    realised = np.array([one.realised_s for one in known], np.float64)
    ours = np.array([one.ours.mean_s for one in known])
    paper = np.array([one.paper_s for one in known])
    scale = np.maximum(realised, 1.0)
    return Accuracy(
        requests=len(known),
        r2=r_squared(realised, ours),
        paper_r2=r_squared(realised, paper),
        mape=float(np.mean(np.abs(ours - realised) / scale)),
        paper_mape=float(np.mean(np.abs(paper - realised) / scale)),
        coverage_p50=float(np.mean(realised <= [one.ours.p50_s for one in known])),
        coverage_p90=float(np.mean(realised <= [one.ours.p90_s for one in known])),
    )


def watch(bed: dict[str, Any], seed: int, *, profiled: int = 0) -> list[Waits]:
    """Run `qlm` on a bed and return what was foretold and what came, in order of arrival.

    The paper's estimator knows the mean lengths of the first `profiled` requests; with 0, of their distribution.
    """
    scenario = scenario_from_mapping(
        {"name": "waits", "slo_classes": published.CLASSES} | bed, "waits"
    )
    arriving = list(requests(scenario, seed=seed))
    lengths = _mean_lengths(arriving[:profiled]) if profiled else SHAREGPT
    waits: dict[RequestId, Waits] = {}
    policy = replace(policy_named("qlm"), build=watched(manager, waits, lengths))
    World(scenario, policy, arriving, seed=seed).run()
    return list(waits.values())


def _mean_lengths(served: Sequence[WorkloadRequest]) -> MeanLengths:
    return MeanLengths(
        prompt_tokens=fmean(one.prompt_tokens for one in served),
        output_tokens=fmean(one.output_tokens for one in served),
    )


def queue_bed(model: str, groups: int) -> dict[str, Any]:
    """So many groups' requests at once in front of one instance.

    Some requests were served in peace before. From them both estimators know lengths: ours remembers all of them, and the
    paper's has them as its offline profile.
    """
    gpus = 4 if "70b" in model else 1
    kind = {"slo_class": "batch-2", "models": {model: 1}}
    history = {"rate_rps": _HISTORY_RPS, "requests": HISTORY_REQUESTS}
    queue = {"rate_rps": 1e5, "requests": groups * GROUP_REQUESTS, "start_s": _QUEUE_FROM_S}
    return {
        "fleet": [{"gpu": "a100", "gpus": gpus, "models": [model], "host_memory_gb": 640}],
        "workload": {
            "kind": "streams",
            "streams": [kind | history, kind | queue],
        },
        "solver": {"rwt": {"history": 2 * HISTORY_REQUESTS}},
    }


def of_queue(model: str, groups: int, trials: int) -> Accuracy:
    """Fig. 18: one point, over several trials."""
    bed = queue_bed(model, groups)
    waits: list[Waits] = []
    for seed in range(trials):
        waits += watch(bed, seed, profiled=HISTORY_REQUESTS)[HISTORY_REQUESTS:]
    return accuracy(waits)


def of_bed(bed: dict[str, Any], seeds: int) -> Accuracy:
    """Both estimators on a workload that goes on arriving."""
    return accuracy([one for seed in range(seeds) for one in watch(bed, seed)])
