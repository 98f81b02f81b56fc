"""Beds whose knees are sought: the paper's workloads, models in turn, tight chats and traces, and the search over all of them.

The paper's workloads are run with its promises, which name first tokens alone, and with promises that a service would make: a
first token that a reader waits for, and a pace for every class. Traces are named by path. They run on one fleet with such
promises, classes dealt out by shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import paper_published as published
from benchmarks.paper import W_B_MODELS
from qlm.knee import BOUND, Knee, Search, find_knee, load_of
from qlm.simulations import Bed, bed_of_scenario, in_processes
from qlm.traces import holds_rates, read_trace
from qlm_core.config import SloClassConfig
from qlm_core.errors import ConfigError
from qlm_core.sim.scaling import at_rate
from qlm_core.sim.scenario import Scenario, scenario_from_mapping
from qlm_core.sim.workload import Mix, TraceMapping, only

Mapping = dict[str, Any]

SCENARIOS = Path(__file__).parent / "scenarios"

_QUICK = ("qlm", "turns", "edf-model", "edf-evict", "vllm-priority", "fcfs", BOUND)
_FULL = (*_QUICK, "turns-3", "turns-6", "turns-9", "turns-15", "least-slack", "edf", "shepherd")
_SLOW = ("qlm-paper", "qlm")
"""Policies that plan take ten times as long as others, so they start first."""

PROMISES: Mapping = {
    "interactive": {"ttft_s": 2, "tpot_s": 0.1, "weight": 4},
    "batch-1": {"ttft_s": 30, "tpot_s": 0.3, "weight": 2},
    "batch-2": {"ttft_s": 600, "tpot_s": 1.0, "weight": 1},
}
"""A service's promises under the names of the paper's classes."""

_FULL_ONLY = ("w-c", "mixed-gpus")

_LONG_PROMPT_TOKENS = 4_000
"""Longer prompts are promised their first token later, in proportion."""

_TRACE_MIX = "interactive=0.5,batch-1=0.3,batch-2=0.2"
_TRACE_MODEL = "llama-3-8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class KneeBed:
    """A bed whose knees are sought.

    Attributes:
        published: the paper's curves of attainment (%) by a rate of its own; empty where it has none.
        published_unit: what that rate is.
    """

    name: str
    title: str
    bed: Bed
    published: published.Curves = field(default_factory=dict)
    published_unit: str = ""


def policies(*, quick: bool) -> tuple[str, ...]:
    """Who is compared, and the bound.

    Not `qlm-paper`: in overload, which is where knees are sought, it takes a hundred times as long as the others.
    """
    return _QUICK if quick else _FULL


def search_of(*, quick: bool) -> Search:
    """How closely knees are sought."""
    if quick:
        return Search(lowest=1 / 8, precision=1.1, requests_least=150, requests_most=2_500)
    return Search(lowest=1 / 16, requests_most=50_000)


# --------------------------------------------------------------------------- beds


def knee_beds(*, quick: bool, traces: Sequence[str] = ()) -> list[KneeBed]:
    """All beds; `quick` ones are smaller and fewer.

    Args:
        traces: `FILE` or `FILE@SCALE`, with the scale of its rate around which knees are sought.

    Raises:
        ConfigError: a trace or its scale cannot be read.
    """
    of_paper = _of_the_paper(20.0, 1, "a10") if quick else _of_the_paper(120.0, 2, "a100")
    beds = [*of_paper, *(_with_promises(one) for one in of_paper)]
    if quick:
        beds = [one for one in beds if one.name not in _FULL_ONLY]
    for name, title in (
        ("three-on-one", "Three models on one H100"),
        ("three-on-two", "Three models on two H100"),
        ("tight-chats", "Tight chats beside batch work"),
    ):
        bed = bed_of_scenario(SCENARIOS / f"{name}.yaml")
        beds.append(KneeBed(name=name, title=title, bed=_shortened(bed, 0.2) if quick else bed))
    return [*beds, *(_of_trace(text, 500 if quick else 2_000) for text in traces)]


def _of_the_paper(span_s: float, size: int, gpu: str) -> list[KneeBed]:
    """The paper's workloads with its promises, on `size` instances or one more; of one model, on that GPU."""
    shared = {"gpu": "a100", "gpus": 4, "host_memory_gb": 640, "models": list(W_B_MODELS)}
    fleet_b = [shared | {"count": size + 1}]
    fleet_a = [{"gpu": gpu, "models": ["mistral-7b"], "count": size}]
    mixed = [{"gpu": gpu, "models": ["mistral-7b"], "count": size} for gpu in ("a10", "a100")]
    return [
        KneeBed(
            name="w-a",
            title="W_A: one model",
            bed=_bed(fleet_a, _w_a("mistral-7b", span_s)),
            published=published.W_A_ATTAINMENT,
            published_unit="K interactive requests/s",
        ),
        KneeBed(
            name="w-b",
            title="W_B: five models share instances",
            bed=_bed(fleet_b, {"kind": "W_B", "batch_1_rps": 6, "requests": round(12 * span_s)}),
            published=published.W_B_ATTAINMENT,
            published_unit="K batch-1 requests/s",
        ),
        KneeBed(
            name="w-c",
            title="W_C: mega prompts among W_B",
            bed=_bed(
                fleet_b,
                {
                    "kind": "W_C",
                    "batch_1_rps": 4,
                    "mega_rps": 2,
                    "requests": round(10 * span_s),
                },
            ),
            published=published.MEGA_PROMPTS,
            published_unit="mega prompts/s",
        ),
        KneeBed(
            name="mixed-gpus",
            title="W_A on A10 and A100",
            bed=_bed(mixed, _w_a("mistral-7b", span_s)),
        ),
    ]


def _w_a(model: str, span_s: float) -> Mapping:
    rate_rps = 4.0
    requests = round(3 * rate_rps * span_s)
    return {"kind": "W_A", "model": model, "interactive_rps": rate_rps, "requests": requests}


def _bed(fleet: list[Mapping], workload: Mapping) -> Bed:
    data = {
        "name": "knee",
        "slo_classes": published.CLASSES,
        "fleet": fleet,
        "workload": workload,
    }
    return Bed(scenario=scenario_from_mapping(data, "knee"))


def _with_promises(of: KneeBed) -> KneeBed:
    """The same with a service's promises, for which the paper has nothing to compare."""
    scenario = _promising(of.bed.scenario)
    return KneeBed(
        name=f"{of.name}-paced",
        title=f"{of.title}; first tokens and pace promised",
        bed=replace(of.bed, scenario=scenario),
    )


def _promising(scenario: Scenario, later: float = 1.0) -> Scenario:
    """The scenario with a service's promises, first tokens `later` times as late."""
    promised = {name: one | {"ttft_s": later * one["ttft_s"]} for name, one in PROMISES.items()}
    classes = msgspec.convert(promised, dict[str, SloClassConfig])
    return msgspec.structs.replace(scenario, slo_classes=classes)


def _shortened(bed: Bed, share: float) -> Bed:
    """A scenario with every span of time `share` as long."""
    work = at_rate(bed.scenario.workload, 1.0, stretch=share)
    return replace(bed, scenario=msgspec.structs.replace(bed.scenario, workload=work))


def _of_trace(text: str, requests: int) -> KneeBed:
    """A trace on two H100; so many requests at the scale given are its span."""
    name, at, number = text.rpartition("@")
    path = Path(name if at else text)
    try:
        scale = float(number) if at else 1.0
    except ValueError:
        raise ConfigError(f"--trace: {number!r} is no number. Write {name}@0.5.") from None
    fleet = [{"gpu": "h100", "models": [_TRACE_MODEL], "count": 2}]
    bed = _bed(fleet, {"kind": "streams"})
    mapping = TraceMapping(
        mix=Mix.parse(_TRACE_MIX), models=only(_TRACE_MODEL), rate_scale=scale, limit=requests
    )
    later = max(1.0, _long_prompt_tokens(path) / _LONG_PROMPT_TOKENS)
    said = f", first tokens promised {later:.0f} times as late" if later > 1.0 else ""
    return KneeBed(
        name=path.name.split(".")[0],
        title=f"{path.name} on two H100{said}",
        bed=Bed(scenario=_promising(bed.scenario, later), trace=path, mapping=mapping),
    )


def _long_prompt_tokens(path: Path) -> float:
    """The 95th percentile of a trace's prompts; 0 where it has rates alone."""
    if holds_rates(path):
        return 0.0
    tokens = sorted(row.prompt_tokens for row in read_trace(path))
    return float(tokens[95 * len(tokens) // 100]) if tokens else 0.0


# --------------------------------------------------------------------------- running


def find_all(
    beds: Sequence[KneeBed],
    names: Sequence[str],
    search: Search,
    *,
    seeds: int,
    jobs: int,
    progress: Callable[[str], None],
) -> dict[str, list[Knee]]:
    """The knees of every policy, by bed; all searches go through one pool of processes."""
    loads = {one.name: load_of(one.bed, range(seeds)) for one in beds}
    wanted = [(bed.name, name) for name in names for bed in beds]
    wanted.sort(key=lambda one: one[1] not in _SLOW)
    found = in_processes(
        [(loads[bed], name, search, range(seeds)) for bed, name in wanted],
        find_knee,
        [f"knee of {name} on {bed}" for bed, name in wanted],
        jobs=jobs,
        progress=progress,
    )
    by_key = dict(zip(wanted, found, strict=True))
    return {one.name: [by_key[one.name, name] for name in names] for one in beds}
