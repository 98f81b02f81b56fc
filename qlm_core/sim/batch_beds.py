"""Random beds with batches: requests that cannot wait beside files of lines, drawn from a seed, so that nobody can tune to them.

What a batch asks for is drawn from what users have, lengths that nobody has told included: outputs of most batches are half to
twice as long as was usual, those of some a fifth or twenty times. A window is between far too short and ample. Streams go on
for as long as a batch is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random
from typing import Any

from qlm_core.profile import EngineProfile
from qlm_core.profile_catalog import base_model, find_profile, shipped_profiles
from qlm_core.sim.lengths import LengthsName, mean_lengths

LASTS_S = 40_000.0
"""Streams last longer than any batch, and a run ends with the last batch."""

_INSTANCES = (1, 4)
_BATCHES = (2, 5)
_LINES = (20, 600)
_WORK_S = (15.0, 300.0)
"""What a batch would take if it had the fleet for itself."""

_FIRST_S = (60.0, 180.0)
"""When the first batch comes."""

_GAP, _GAP_S_MIN = 2.0, 30.0
"""Mean time from one batch to the next, over what the first may take, and what it takes at least."""

_LOAD = (0.05, 0.6)
_LOAD_SWAPPING = (0.05, 0.3)
"""The same where instances are shared by models, and swaps take their time as well."""

_RATE_RPS_MAX = 4.0
"""Of all streams: more would only take longer to simulate."""

_OUTPUT_SCALE = (0.5, 2.0)
_AS_USUAL = 0.6
"""How often a batch asks for what the bed's requests ask for, to its scale; the others ask for anything."""

_WINDOW = (0.1, 50.0)
"""Completion windows over what the batch would take if it had the fleet for itself."""

_USES: tuple[tuple[LengthsName, int], ...] = (
    ("sharegpt", 2048),
    ("brief", 1024),
    ("code", 2048),
    ("rag", 1024),
    ("reasoning", 8192),
)
_ARRIVALS = ("steady", "bursty", "changing")
_WINDOWS_S = 150.0
"""Changing rates hold for so long."""

_CHANGES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBatchBed:
    """A bed with batches and where it came from; `scenario` is plain data without policies."""

    seed: int
    index: int
    run_seed: int
    scenario: dict[str, Any]


def draw_batch_bed(seed: int, index: int) -> DrawnBatchBed:
    """The bed of that number; the same for the same seed and number, whatever else is drawn."""
    rng = Random(f"batch-bed/{seed}/{index}")
    fleet, models = _draw_fleet(rng)
    swaps = any(len(part["models"]) > 1 for part in fleet)
    load, kind = rng.uniform(*(_LOAD_SWAPPING if swaps else _LOAD)), rng.choice(_ARRIVALS)
    usual = rng.choice(_USES[:4])
    run_seed = 1_000 * seed + index
    return DrawnBatchBed(
        seed=seed,
        index=index,
        run_seed=run_seed,
        scenario={
            "name": f"batches-{seed}-{index}",
            "about": f"drawn: bed {index} of seed {seed}, {kind} streams of load {load:.2f} beside batches",
            "fleet": fleet,
            "slo_classes": {
                "interactive": {"ttft_s": _readable(_by_log(rng, 1.0, 20.0)), "weight": 4.0},
                "lax": {"ttft_s": _readable(_by_log(rng, 120.0, 3600.0)), "weight": 2.0},
                "batch": {"ttft_s": 86_400.0, "e2e_s": 86_400.0, "weight": 1.0},
            },
            "solver": {"replan": {"min_interval_s": 0.5}},
            "simulation": {"report_interval_s": 0.25},
            "workload": {
                "kind": "streams",
                "streams": _draw_streams(rng, fleet, models, kind, load, usual),
                "batches": _draw_batches(rng, fleet, models, load, usual),
            },
        },
    )


def _draw_fleet(rng: Random) -> tuple[list[dict[str, Any]], list[str]]:
    gpus = list(dict.fromkeys(profile.gpu for profile in shipped_profiles()))
    count = rng.randint(*_INSTANCES)
    kinds = rng.sample(gpus, 1 if rng.random() < 0.6 else min(2, count))
    able = [one for one in _bases() if all(_degree(one, gpu) for gpu in kinds)]
    models = rng.sample(able, 1 if rng.random() < 0.6 else min(2, len(able)))
    # One instance for requests that cannot wait and for another model's batch: that batch would never run.
    models = models[:count]
    shared = rng.random() < 0.5
    parts: list[dict[str, Any]] = []
    for number in range(count):
        gpu, own = kinds[number % len(kinds)], models if shared else [models[number % len(models)]]
        degree = max(_degree(model, gpu) for model in own)
        parts.append({"gpu": gpu, "gpus": degree, "models": own})
    return parts, models


def _bases() -> list[str]:
    return list(dict.fromkeys(profile.model for profile in shipped_profiles()))


def _degree(model: str, gpu: str) -> int:
    """The fewest GPUs of a kind that hold a model; 0 if there is no profile."""
    degrees = [
        profile.tensor_parallel
        for profile in shipped_profiles()
        if (profile.model, profile.gpu) == (base_model(model), gpu)
    ]
    return min(degrees, default=0)


def _serving(fleet: list[dict[str, Any]], model: str) -> list[EngineProfile]:
    return [
        find_profile(model, part["gpu"], tensor_parallel=_degree(model, part["gpu"]))
        for part in fleet
        if model in part["models"]
    ]


def _fleet_s(
    fleet: list[dict[str, Any]], model: str, lengths: LengthsName, scale: float, most: int
) -> float:
    """Seconds that the instances of a model together take for one request in full batches."""
    prompt, output = mean_lengths(lengths)
    output = min(output * scale, float(most))
    serving = _serving(fleet, model)
    return 1.0 / sum(one.decode_throughput(prompt, output) / output for one in serving)


def _draw_streams(
    rng: Random,
    fleet: list[dict[str, Any]],
    models: list[str],
    kind: str,
    load: float,
    usual: tuple[LengthsName, int],
) -> list[dict[str, Any]]:
    # A model with requests that cannot wait has instances of its own; batches of another model come in between.
    models = models if all(len(part["models"]) == 1 for part in fleet) else models[:1]
    streams: list[dict[str, Any]] = []
    classes = [("interactive", 0.7), ("lax", 0.3)] if rng.random() < 0.4 else [("interactive", 1.0)]
    for name, share in classes:
        lengths, most = usual
        for model in models:
            work_s = _fleet_s(fleet, model, lengths, 1.0, most)
            rate_rps = share * min(load / work_s, _RATE_RPS_MAX) / len(models)
            for begin_s, end_s, factor in _spans(rng, kind):
                streams.append(
                    {
                        "slo_class": name,
                        "models": {model: 1.0},
                        "rate_rps": _readable(max(1e-3, rate_rps * factor)),
                        "cv": 3.0 if kind == "bursty" else 1.0,
                        "lengths": lengths,
                        "max_tokens": most,
                        "start_s": begin_s,
                        "until_s": end_s,
                    }
                )
    return streams


def _spans(rng: Random, kind: str) -> list[tuple[float, float, float]]:
    if kind != "changing":
        return [(0.0, LASTS_S, 1.0)]
    spans = []
    for number in range(_CHANGES):
        end_s = LASTS_S if number == _CHANGES - 1 else (number + 1) * _WINDOWS_S
        spans.append((number * _WINDOWS_S, end_s, exp(rng.gauss(-0.08, 0.4))))
    return spans


def _draw_batches(
    rng: Random,
    fleet: list[dict[str, Any]],
    models: list[str],
    load: float,
    usual: tuple[LengthsName, int],
) -> list[dict[str, Any]]:
    batches = []
    at_s = rng.uniform(*_FIRST_S)
    for _ in range(rng.randint(*_BATCHES)):
        lengths, most = usual if rng.random() < _AS_USUAL else rng.choice(_USES)
        scale = _readable(_by_log(rng, *_OUTPUT_SCALE))
        own = rng.sample(models, rng.randint(1, len(models)))
        line_s = sum(_fleet_s(fleet, one, lengths, scale, most) for one in own) / len(own)
        lines = round(min(_LINES[1], max(_LINES[0], _by_log(rng, *_WORK_S) / line_s)))
        batches.append(
            {
                "slo_class": "batch",
                "models": {one: _readable(_by_log(rng, 0.3, 3.0)) for one in own},
                "lines": lines,
                "lengths": lengths,
                "output_scale": scale,
                "max_tokens": most,
                "submitted_s": round(at_s, 1),
                "window_s": _readable(lines * line_s * _by_log(rng, *_WINDOW)),
            }
        )
        at_s += rng.expovariate(1.0 / _GAP) * max(_GAP_S_MIN, lines * line_s / (1.0 - load))
    return batches


def _by_log(rng: Random, least: float, most: float) -> float:
    return exp(rng.uniform(log(least), log(most)))


def _readable(value: float) -> float:
    return float(f"{value:.3g}")
