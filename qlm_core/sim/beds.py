"""Random beds: scenarios drawn from a seed over what users have, so that nobody can tune to them.

A bed is plain data, as a scenario file holds it. Its fleet, models, classes, arrivals and lengths are drawn one after another.
Rates follow from the load, which is a share of what the fleet can serve when every batch is full. `kinds` says in a few words
what was drawn, so that beds can be compared by kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random
from typing import Any

from qlm_core.profile import EngineProfile
from qlm_core.profile_catalog import base_model, find_profile, shipped_profiles
from qlm_core.sim.lengths import LengthsName, mean_lengths

REQUESTS_MAX = 3_000
"""Most requests of a bed."""

_INSTANCES_MAX = 6
_MODELS_MAX = 6
_GPU_KINDS_MAX = 3
_CLASSES = (2, 4)
_TTFT_S = (0.3, 3600.0)
_STRICTEST_S_MAX = 60.0
"""The strictest class of a bed is within this: where all are lax, every policy keeps everything."""
_LOAD = (0.4, 1.6)
_SPAN_S = (60.0, 400.0)
_REQUESTS = (150, REQUESTS_MAX)
"""A bed lasts for a span, or until so many requests have come if that is sooner; both are drawn by their logarithms."""

_REQUESTS_MIN = 100
"""A bed lasts until so many have come, and no less than the shortest span unless it has the most requests by then."""

_USES: tuple[tuple[str, LengthsName, int], ...] = (
    ("chat", "sharegpt", 2048),
    ("brief", "brief", 1024),
    ("code", "code", 2048),
    ("rag", "rag", 1024),
    ("mega", "mega", 2048),
    ("reasoning", "reasoning", 8192),
)
"""What requests are for, with their lengths and the client's limit of output tokens."""

_ARRIVALS = ("steady", "bursty", "ramping", "trace-like")
_TIGHT_S, _LAX_S = 2.0, 60.0
_WINDOWS = 8
"""Ramps and traces are so many windows of constant rates."""

_ENGINE_BATCH = 32
"""Sequences at which an engine's pace is what users see as usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBed:
    """A bed and where it came from.

    Attributes:
        run_seed: of its requests: the seed that `qlm sim` is given to repeat it.
        scenario: plain data of a scenario, without policies.
        kinds: what was drawn, one word or two for each of models, targets, load, arrivals and lengths.
    """

    seed: int
    index: int
    run_seed: int
    scenario: dict[str, Any]
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fleet:
    parts: list[dict[str, Any]]
    models: list[str]
    kind: str

    def serving(self, model: str) -> list[EngineProfile]:
        """The profile of each instance that serves a model."""
        return [
            find_profile(model, part["gpu"], tensor_parallel=_degree(model, part["gpu"]))
            for part in self.parts
            if model in part["models"]
        ]


def draw_bed(seed: int, index: int) -> DrawnBed:
    """The bed of that number; the same for the same seed and number, whatever else is drawn."""
    rng = Random(f"bed/{seed}/{index}")
    fleet = _draw_fleet(rng)
    uses = [_USES[rng.randrange(len(_USES))] for _ in range(rng.randint(*_CLASSES))]
    classes = _draw_classes(rng, fleet, uses)
    arrivals = rng.choice(_ARRIVALS)
    load = rng.uniform(*_LOAD)
    streams, requests = _draw_streams(
        rng, fleet, dict(zip(classes, uses, strict=True)), arrivals, load
    )
    run_seed = 1_000 * seed + index
    return DrawnBed(
        seed=seed,
        index=index,
        run_seed=run_seed,
        scenario={
            "name": f"random-{seed}-{index}",
            "about": f"drawn: bed {index} of seed {seed}, load {load:.2f}; run it with --seed {run_seed}",
            "fleet": fleet.parts,
            "slo_classes": classes,
            "workload": {"kind": "streams", "requests": requests, "streams": streams},
        },
        kinds=(fleet.kind, *_of_classes(classes), _of_load(load), arrivals, *_of_uses(uses)),
    )


# --------------------------------------------------------------------------- fleet


def _draw_fleet(rng: Random) -> _Fleet:
    gpus = list(dict.fromkeys(profile.gpu for profile in shipped_profiles()))
    count = rng.randint(1, _INSTANCES_MAX)
    kinds = rng.sample(gpus, rng.randint(1, min(_GPU_KINDS_MAX, count)))
    able = [one for one in _bases() if all(_degree(one, gpu) for gpu in kinds)]
    versions = [one + end for one in able for end in ("", "-ft1", "-ft2")]
    many = rng.choice((1, 2, 3, 4, 5, _MODELS_MAX))
    models = rng.sample(versions, min(many, len(versions)))
    # Instances of their own for each model, all models on each instance, or something between.
    sharing = rng.choice(("apart", "partly", "shared"))
    memory_gb = rng.choice((64, 128, 256, 512))
    parts: list[dict[str, Any]] = []
    for number in range(count):
        gpu = kinds[number % len(kinds)]
        own = models[number::count] or [models[number % len(models)]]
        others = [model for model in models if model not in own]
        if sharing == "partly":
            own = own + rng.sample(others, rng.randint(0, len(others)))
        elif sharing == "shared":
            own = own + others
        parts.append(
            {
                "gpu": gpu,
                "gpus": max(_degree(model, gpu) for model in own),
                "models": own,
                "host_memory_gb": memory_gb,
            }
        )
    if len(models) == 1:
        kind = "one model"
    elif all(len(part["models"]) == 1 for part in parts):
        kind = "models apart"
    else:
        kind = "models in turn" if len(models) > count else "models shared"
    return _Fleet(parts, models, kind)


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


# --------------------------------------------------------------------------- classes


def _draw_classes(
    rng: Random, fleet: _Fleet, uses: list[tuple[str, LengthsName, int]]
) -> dict[str, dict[str, float]]:
    """Classes from the strictest on, weighed by rank; some promise a pace or an end that an engine with room keeps."""
    strictest_s = _by_log(rng, _TTFT_S[0], _STRICTEST_S_MAX)
    targets_s = sorted([strictest_s, *(_by_log(rng, *_TTFT_S) for _ in uses[1:])])
    pace_s = max(
        profile.iteration_s(decode_batch=_ENGINE_BATCH, context_tokens=_ENGINE_BATCH * 1_000.0)
        for model in fleet.models
        for profile in fleet.serving(model)
    )
    classes: dict[str, dict[str, float]] = {}
    for rank, ((use, lengths, _), ttft_s) in enumerate(zip(uses, targets_s, strict=True)):
        promised: dict[str, float] = {"ttft_s": _readable(ttft_s)}
        if rng.random() < 0.35:
            promised["tpot_s"] = _readable(pace_s * _by_log(rng, 1.3, 6.0))
        if rng.random() < 0.2:
            output_s = mean_lengths(lengths)[1] * pace_s
            promised["e2e_s"] = _readable(ttft_s + output_s * _by_log(rng, 2.0, 12.0))
        promised["weight"] = float(2 ** (len(uses) - 1 - rank))
        classes[f"{use}-{rank + 1}"] = promised
    return classes


def _by_log(rng: Random, least: float, most: float) -> float:
    return exp(rng.uniform(log(least), log(most)))


def _readable(value: float) -> float:
    return float(f"{value:.3g}")


# --------------------------------------------------------------------------- workload


def _draw_streams(
    rng: Random,
    fleet: _Fleet,
    uses: dict[str, tuple[str, LengthsName, int]],
    arrivals: str,
    load: float,
) -> tuple[list[dict[str, Any]], int]:
    """Streams of each class whose work is `load` of what the fleet does, and how many requests at most."""
    shares = {name: _by_log(rng, 0.25, 4.0) for name in uses}
    mixes = {
        name: {model: _readable(_by_log(rng, 0.2, 5.0)) for model in fleet.models} for name in uses
    }
    # Instances' seconds that a second of arrivals takes at one request/s in all.
    work_s = sum(
        shares[name]
        * sum(share * _request_s(fleet, model, uses[name][1]) for model, share in mix.items())
        / sum(mix.values())
        for name, mix in mixes.items()
    ) / sum(shares.values())
    rate_rps = load * len(fleet.parts) / work_s
    span_s = min(_by_log(rng, *_SPAN_S), _by_log(rng, *_REQUESTS) / rate_rps)
    span_s = max(span_s, min(_SPAN_S[0], REQUESTS_MAX / rate_rps), _REQUESTS_MIN / rate_rps)
    cv = {"steady": 1.0, "bursty": _readable(rng.uniform(2.0, 6.0)), "ramping": 1.0}.get(
        arrivals, 1.5
    )
    streams = []
    for name, (_, lengths, max_tokens) in uses.items():
        own_rps = rate_rps * shares[name] / sum(shares.values())
        for number, factor in enumerate(_factors(rng, arrivals)):
            width_s = span_s / _WINDOWS
            windowed = arrivals in ("ramping", "trace-like")
            streams.append(
                {
                    "slo_class": name,
                    "models": mixes[name],
                    "rate_rps": _readable(own_rps * factor),
                    "cv": cv,
                    "lengths": lengths,
                    "max_tokens": max_tokens,
                    "start_s": round(number * width_s, 3),
                    "until_s": round((number + 1) * width_s if windowed else span_s, 3),
                }
            )
    return streams, min(REQUESTS_MAX, round(1.5 * rate_rps * span_s))


def _factors(rng: Random, arrivals: str) -> list[float]:
    """The rate of each window of time over the mean rate."""
    if arrivals == "ramping":
        return [0.25 + 1.5 * number / (_WINDOWS - 1) for number in range(_WINDOWS)]
    if arrivals == "trace-like":
        drawn = [exp(rng.gauss(0.0, 0.7)) for _ in range(_WINDOWS)]
        return [one * _WINDOWS / sum(drawn) for one in drawn]
    return [1.0]


def _request_s(fleet: _Fleet, model: str, lengths: LengthsName) -> float:
    """Seconds of an instance for a request in full batches: the mean over those that serve the model."""
    prompt, output = mean_lengths(lengths)
    costs_s = [output / one.decode_throughput(prompt, output) for one in fleet.serving(model)]
    return sum(costs_s) / len(costs_s)


# --------------------------------------------------------------------------- kinds


def _of_classes(classes: dict[str, dict[str, float]]) -> tuple[str, ...]:
    tightest_s = min(promised["ttft_s"] for promised in classes.values())
    kinds = ["tight first tokens" if tightest_s <= _TIGHT_S else "no tight first token"]
    paced_s = [promised["ttft_s"] for promised in classes.values() if "tpot_s" in promised]
    if paced_s:
        kinds.append("promised pace")
    if max(paced_s, default=0.0) > _LAX_S:
        kinds.append("pace of lax work")
    if any("e2e_s" in promised for promised in classes.values()):
        kinds.append("promised end")
    return tuple(kinds)


def _of_load(load: float) -> str:
    if load > 1.0:
        return "load above 1"
    return "load 0.7 to 1" if load > 0.7 else "load below 0.7"


def _of_uses(uses: list[tuple[str, LengthsName, int]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"with {use}" for use, _, _ in uses))
