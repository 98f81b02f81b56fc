"""Scenarios: a fleet, a workload and the settings under which policies are compared.

A scenario is plain data (a YAML file read by the face) that is checked here once; what follows from it, profiles, agents
and requests, is worked out by functions of it. Sizes carry their unit in the name, as in `config.yaml`, whose
sections `slo_classes`, `solver` and `executor` may be given here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from qlm_core.config import (
    Config,
    ExecutorConfig,
    Section,
    SloClassConfig,
    SolverConfig,
)
from qlm_core.errors import ConfigError
from qlm_core.model import Slo, SloClass
from qlm_core.profile import EngineProfile
from qlm_core.profile_catalog import base_model, find_profile
from qlm_core.sim.lengths import LengthsName
from qlm_core.sim.workload import (
    W_B_BATCH_1,
    W_B_BATCH_2,
    Mix,
    Stream,
    WorkloadRequest,
    generate,
    workload_a,
    workload_b,
    workload_c,
)

REQUESTS_MAX = 5_000_000
INSTANCES_MAX = 2_000


class FleetPart(Section, frozen=True, kw_only=True):
    """Some serving instances that are alike.

    gpus: GPUs of one instance; a model uses the largest degree of tensor parallelism up to it that has a profile.
    awake: the model loaded at the start; empty deals the models out in turn.
    host_memory_gb: of one instance, for sleeping models and for the KV cache of evicted requests.
    """

    gpu: str
    models: tuple[str, ...]
    count: int = 1
    gpus: int = 1
    awake: str = ""
    host_memory_gb: float = 256.0


class StreamConfig(Section, frozen=True, kw_only=True):
    """One stream of requests; see `qlm_core.sim.workload.Stream`. `models` are shares by name."""

    slo_class: str
    models: dict[str, float]
    rate_rps: float
    cv: float = 1.0
    lengths: LengthsName = "sharegpt"
    requests: int | None = None
    start_s: float = 0.0
    until_s: float | None = None
    max_tokens: int = 2048


class WorkloadConfig(Section, frozen=True, kw_only=True):
    """What is asked of the fleet: one of the paper's workloads, or streams of one's own.

    requests: how many in all. model: of W_A. A rate that is left out equals the first class's. `batch_1_models` and
    `batch_2_models` are shares by name (W_B and W_C). `mega_rps` is the rate of mega prompts in W_C.
    """

    kind: Literal["W_A", "W_B", "W_C", "streams"]
    requests: int | None = None
    model: str = "vicuna-13b"
    interactive_rps: float | None = None
    batch_1_rps: float | None = None
    batch_2_rps: float | None = None
    mega_rps: float | None = None
    batch_1_models: dict[str, float] = {}
    batch_2_models: dict[str, float] = {}
    cv: float = 1.0
    streams: tuple[StreamConfig, ...] = ()


class SimulationConfig(Section, frozen=True, kw_only=True):
    """What the simulated world adds to the real one's settings.

    link_s: one-way delay between any two processes.
    solve_work: moves that the planner tries for one plan. solve_s: simulated time that it takes.
    report_interval_s: how often a busy agent reports.
    """

    link_s: float = 0.001
    solve_work: int = 20_000
    solve_s: float = 0.2
    report_interval_s: float = 1.0


class Scenario(Section, frozen=True, kw_only=True):
    """One bed on which policies are compared. `profiles` go before the shipped ones."""

    name: str
    fleet: tuple[FleetPart, ...]
    workload: WorkloadConfig
    about: str = ""
    slo_classes: dict[str, SloClassConfig] = msgspec.field(
        default_factory=lambda: Config().slo_classes
    )
    solver: SolverConfig = SolverConfig()
    executor: ExecutorConfig = ExecutorConfig()
    profiles: tuple[EngineProfile, ...] = ()
    simulation: SimulationConfig = SimulationConfig()
    policies: tuple[str, ...] = ("qlm", "edf", "fcfs")

    @property
    def classes(self) -> tuple[SloClass, ...]:
        """The SLO classes as values."""
        return tuple(
            SloClass(
                name=name,
                slo=Slo(ttft_s=section.ttft_s, tpot_s=section.tpot_s, e2e_s=section.e2e_s),
                weight=section.weight,
            )
            for name, section in self.slo_classes.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One serving instance of the simulated fleet."""

    name: str
    gpu: str
    profiles: tuple[EngineProfile, ...]
    awake: str
    host_memory_bytes: int


def scenario_from_mapping(data: object, where: str) -> Scenario:
    """Check plain data and build the scenario.

    Args:
        where: the file's name, for messages.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    try:
        scenario = msgspec.convert({} if data is None else data, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_readable(str(error))}") from None
    try:
        _check(scenario)
        instances(scenario.fleet, scenario.profiles)
        if scenario.workload.kind != "streams" or scenario.workload.streams:
            next(requests(scenario, seed=0), None)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return scenario


def instances(
    fleet: tuple[FleetPart, ...], own: tuple[EngineProfile, ...] = ()
) -> tuple[InstanceSpec, ...]:
    """Every instance of a fleet; `own` profiles go before the shipped ones.

    Raises:
        ConfigError: a GPU or model without a profile; the message names the key.
    """
    specs: list[InstanceSpec] = []
    for index, part in enumerate(fleet):
        where = f"fleet[{index}]"
        if not part.models:
            raise ConfigError(f"{where}.models: empty. Name at least one model.")
        if part.awake and part.awake not in part.models:
            raise ConfigError(f"{where}.awake: {part.awake!r} is not one of its models.")
        profiles = tuple(_profile(model, part, own, where) for model in part.models)
        for _ in range(part.count):
            awake = part.awake or part.models[len(specs) % len(part.models)]
            specs.append(
                InstanceSpec(
                    name=f"{part.gpu}-{len(specs):03d}",
                    gpu=part.gpu,
                    profiles=profiles,
                    awake=awake,
                    host_memory_bytes=round(part.host_memory_gb * 1e9),
                )
            )
    return tuple(specs)


def room_tokens(specs: Sequence[InstanceSpec]) -> dict[str, int]:
    """Tokens of prompt and output that a request of each model may have: what its smallest instance holds."""
    rooms: dict[str, int] = {}
    for spec in specs:
        for profile in spec.profiles:
            held = profile.kv_cache_tokens // profile.block_tokens * profile.block_tokens
            rooms[profile.model] = min(held, rooms.get(profile.model, held))
    return rooms


def _profile(
    model: str, part: FleetPart, own: tuple[EngineProfile, ...], where: str
) -> EngineProfile:
    for degree in range(part.gpus, 0, -1):
        for profile in own:
            same_gpus = (profile.gpu, profile.tensor_parallel) == (part.gpu, degree)
            if same_gpus and profile.model in (model, base_model(model)):
                return replace(profile, model=model)
        try:
            return find_profile(model, part.gpu, tensor_parallel=degree)
        except ConfigError as error:
            last = error
    if "tensor_parallel" in str(last):
        raise ConfigError(
            f"{where}.gpus: {model!r} does not fit on {part.gpus} {part.gpu}. {last}"
        ) from None
    raise ConfigError(f"{where}: {last}") from None


def requests(scenario: Scenario, *, seed: int) -> Iterator[WorkloadRequest]:
    """The scenario's requests in order of arrival.

    Raises:
        ConfigError: a rate is missing or out of range, or nothing bounds the workload.
    """
    work = scenario.workload
    if work.requests is not None and not 1 <= work.requests <= REQUESTS_MAX:
        raise ConfigError(f"workload.requests: {work.requests}. Give 1 to {REQUESTS_MAX}.")
    try:
        streams = _streams(work)
    except ConfigError as error:
        raise ConfigError(f"workload.{error}") from None
    for stream in streams:
        if stream.slo_class not in scenario.slo_classes:
            known = ", ".join(scenario.slo_classes)
            raise ConfigError(
                f"workload: the class {stream.slo_class!r} is not one of slo_classes ({known})."
            )
    served = {model: None for part in scenario.fleet for model in part.models}
    for model in {name: None for stream in streams for name in stream.models.names}:
        if model not in served:
            raise ConfigError(
                f"workload: no instance serves {model!r}. Add it to fleet[...].models."
            )
    return generate(streams, seed=seed, requests=work.requests)


def _streams(work: WorkloadConfig) -> tuple[Stream, ...]:
    if work.kind == "streams":
        if not work.streams:
            raise ConfigError("streams: empty. Give at least one stream, or a workload's `kind`.")
        return tuple(
            Stream(
                slo_class=one.slo_class,
                models=Mix(tuple(one.models.items())),
                rate_rps=one.rate_rps,
                cv=one.cv,
                lengths=one.lengths,
                requests=one.requests,
                start_s=one.start_s,
                until_s=one.until_s,
                max_tokens=one.max_tokens,
            )
            for one in work.streams
        )
    if work.streams:
        raise ConfigError(f"streams: only with `kind: streams`, not with {work.kind}.")
    batch_1 = Mix(tuple(work.batch_1_models.items())) if work.batch_1_models else W_B_BATCH_1
    batch_2 = Mix(tuple(work.batch_2_models.items())) if work.batch_2_models else W_B_BATCH_2
    if work.kind == "W_A":
        return workload_a(
            interactive_rps=_given(work.interactive_rps, "interactive_rps", work.kind),
            model=work.model,
            batch_1_rps=work.batch_1_rps,
            batch_2_rps=work.batch_2_rps,
            cv=work.cv,
        )
    rate = _given(work.batch_1_rps, "batch_1_rps", work.kind)
    if work.kind == "W_B":
        return workload_b(
            batch_1_rps=rate,
            batch_2_rps=work.batch_2_rps,
            batch_1=batch_1,
            batch_2=batch_2,
            cv=work.cv,
        )
    mega = workload_c(
        mega_rps=_given(work.mega_rps, "mega_rps", work.kind),
        batch_1_rps=rate,
        mega_models=batch_1,
        cv=work.cv,
    )[-1]
    regular = workload_b(
        batch_1_rps=rate, batch_2_rps=work.batch_2_rps, batch_1=batch_1, batch_2=batch_2, cv=work.cv
    )
    return (*regular, mega)


def _given(value: float | None, key: str, kind: str) -> float:
    if value is None:
        raise ConfigError(f"{key}: missing. {kind} needs it; give requests per second.")
    return value


def _check(scenario: Scenario) -> None:
    if not scenario.fleet:
        raise ConfigError("fleet: empty. Give at least one entry with gpu and models.")
    total = 0
    for index, part in enumerate(scenario.fleet):
        if part.count < 1 or part.gpus < 1:
            raise ConfigError(f"fleet[{index}]: count and gpus must be at least 1.")
        if not part.host_memory_gb >= 0:
            raise ConfigError(f"fleet[{index}].host_memory_gb: must be at least 0.")
        total += part.count
    if total > INSTANCES_MAX:
        raise ConfigError(f"fleet: {total} instances; at most {INSTANCES_MAX}.")
    for name, section in scenario.slo_classes.items():
        if not section.ttft_s > 0:
            raise ConfigError(f"slo_classes.{name}.ttft_s: must be above 0 seconds.")
    simulation = scenario.simulation
    if not (simulation.link_s >= 0 and simulation.solve_s >= 0 and simulation.solve_work >= 1):
        raise ConfigError("simulation: link_s and solve_s must be at least 0, solve_work 1.")
    if not simulation.report_interval_s > 0:
        raise ConfigError("simulation.report_interval_s: must be above 0 seconds.")


_AT = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`")


def _readable(message: str) -> str:
    at = _AT.match(message)
    what, path = (at["what"], at["path"]) if at else (message, "")
    if unknown := _UNKNOWN.fullmatch(what):
        key = f"{path}.{unknown['key']}".strip(".")
        return f"{key}: unknown key. Remove it or check its spelling (`qlm sim new` shows all)."
    if missing := _MISSING.fullmatch(what):
        key = f"{path}.{missing['key']}".strip(".")
        return f"{key}: missing. Add this key (`qlm sim new` shows all)."
    what = what.replace("`", "")
    return f"{path or 'the scenario'}: {what[:1].lower()}{what[1:]}. See `qlm sim new`."
