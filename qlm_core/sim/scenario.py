"""Scenarios: a fleet, a workload and the settings under which policies are compared.

A scenario is plain data (a YAML file read by the face) that is checked here once; what follows from it, profiles, agents
and requests, is worked out by functions of it. Sizes carry their unit in the name, as in `config.yaml`, whose
sections `slo_classes`, `solver` and `executor` may be given here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import msgspec

from qlm_core.config import (
    Config,
    ExecutorConfig,
    SloClassConfig,
    SolverConfig,
)
from qlm_core.config_rules import check_numbers
from qlm_core.config_section import Section, read_secret
from qlm_core.errors import ConfigError
from qlm_core.model import Slo, SloClass
from qlm_core.profile import ADAPTER_LOAD_S, EngineProfile
from qlm_core.profile_catalog import base_model, find_profile, shipped_profiles
from qlm_core.sim.batches import BatchConfig, check_batch
from qlm_core.sim.lengths import LengthsName
from qlm_core.sim.workload import (
    REQUESTS_MAX,
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

INSTANCES_MAX = 2_000
GPUS_MAX = 64
HOST_MEMORY_MAX_GB = 1e6
CLASSES_MAX = 1_000
LORAS_MAX = 10_000


WorkloadKind = Literal["W_A", "W_B", "W_C", "streams"]

_OF_W_B = ("batch_1_rps", "batch_2_rps", "batch_1_models", "batch_2_models", "cv")
_KEYS: dict[WorkloadKind, tuple[str, ...]] = {
    "W_A": ("model", "interactive_rps", "batch_1_rps", "batch_2_rps", "cv"),
    "W_B": _OF_W_B,
    "W_C": (*_OF_W_B, "mega_rps"),
    "streams": ("streams",),
}
"""What a workload of each kind reads besides `requests`."""


class FleetPart(Section, frozen=True, kw_only=True):
    """Some serving instances that are alike.

    gpus: GPUs of one instance; a model uses the largest degree of tensor parallelism up to it that has a profile.
    awake: the model loaded at the start; empty deals the models out in turn, adapters aside.
    host_memory_gb: of one instance, for sleeping models and for the KV cache of evicted requests.
    max_loras: different adapters in one batch; 0 for any number.
    """

    gpu: str
    models: tuple[str, ...]
    count: int = 1
    gpus: int = 1
    awake: str = ""
    host_memory_gb: float = 256.0
    max_loras: int = 0


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

    requests: how many in all. model: of W_A, vicuna-13b unless stated. A rate that is left out equals the first class's,
    and 0 is none of these requests. `batch_1_models` and `batch_2_models` are shares by name (W_B and W_C). `mega_rps` is
    the rate of mega prompts in W_C. cv: of the gaps, 1 unless stated; each stream has its own. `batches` come beside any of
    these, or alone.
    """

    kind: WorkloadKind
    requests: int | None = None
    model: str | None = None
    interactive_rps: float | None = None
    batch_1_rps: float | None = None
    batch_2_rps: float | None = None
    mega_rps: float | None = None
    batch_1_models: dict[str, float] | None = None
    batch_2_models: dict[str, float] | None = None
    cv: float | None = None
    streams: tuple[StreamConfig, ...] = ()
    batches: tuple[BatchConfig, ...] = ()


class SimulationConfig(Section, frozen=True, kw_only=True):
    """What the simulated world adds to the real one's settings.

    link_s: one-way delay between any two processes.
    solve_work: moves that the planner tries for one plan. solve_s: simulated time that it takes.
    report_interval_s: how often a busy agent reports.
    abort_s: how long an engine goes on with what was aborted: until it has noticed that a connection is closed.
    waiting_lines_max: of each model so many released lines of batches wait for an engine at a time.
    """

    link_s: float = 0.001
    solve_work: int = 20_000
    solve_s: float = 0.2
    report_interval_s: float = 1.0
    abort_s: float = 0.0
    waiting_lines_max: int = 256


class Scenario(Section, frozen=True, kw_only=True):
    """One bed on which policies are compared. `profiles` go before the shipped ones; `adapters` have bases by their names."""

    name: str
    fleet: tuple[FleetPart, ...]
    workload: WorkloadConfig
    about: str = ""
    adapters: dict[str, str] = {}
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


_NO_ADAPTERS: Mapping[str, str] = MappingProxyType({})


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
        scenario = msgspec.convert({} if data is None else data, Scenario, dec_hook=read_secret)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_readable(str(error))}") from None
    try:
        _check(scenario)
        instances(scenario.fleet, scenario.profiles, scenario.adapters)
        work = scenario.workload
        if work.kind != "streams" or work.streams or work.batches:
            next(requests(scenario, seed=0), None)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return scenario


def instances(
    fleet: tuple[FleetPart, ...],
    own: tuple[EngineProfile, ...] = (),
    adapters: Mapping[str, str] = _NO_ADAPTERS,
) -> tuple[InstanceSpec, ...]:
    """Every instance of a fleet; `own` profiles go before the shipped ones, `adapters` have bases by their names.

    Raises:
        ConfigError: a GPU or model without a profile, or an adapter without its base; the message names the key.
    """
    specs: list[InstanceSpec] = []
    for index, part in enumerate(fleet):
        where = f"fleet[{index}]"
        if not part.models:
            raise ConfigError(f"{where}.models: empty. Name at least one model.")
        if part.awake and part.awake not in part.models:
            raise ConfigError(f"{where}.awake: {part.awake!r} is not one of its models.")
        bases = [model for model in part.models if model not in adapters]
        if part.awake in adapters:
            raise ConfigError(f"{where}.awake: {part.awake!r} is an adapter. Name its base.")
        profiles = tuple(
            _profile(model, part, own, where)
            if model in bases
            else _adapter(model, adapters[model], part, own, where)
            for model in part.models
        )
        for _ in range(part.count):
            awake = part.awake or bases[len(specs) % len(bases)]
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


def _adapter(
    model: str, base: str, part: FleetPart, own: tuple[EngineProfile, ...], where: str
) -> EngineProfile:
    if base not in part.models:
        raise ConfigError(
            f"{where}.models: {model!r} is an adapter of {base!r}, which is not among them. Add it."
        )
    return _profile(base, part, own, where).adapter(model, load_s=ADAPTER_LOAD_S)


def _profile(
    model: str, part: FleetPart, own: tuple[EngineProfile, ...], where: str
) -> EngineProfile:
    for degree in range(part.gpus, 0, -1):
        for profile in own:
            same_gpus = (profile.gpu, profile.tensor_parallel) == (part.gpu, degree)
            if same_gpus and profile.model in (model, base_model(model)):
                return replace(profile, model=model, adapters_max=part.max_loras)
        try:
            found = find_profile(model, part.gpu, tensor_parallel=degree)
            return replace(found, adapters_max=part.max_loras)
        except ConfigError as error:
            last = error
    if any(profile.gpu == part.gpu for profile in own):
        raise ConfigError(f"{where}: {_lacking(model, part, own)}") from None
    if "tensor_parallel" in str(last):
        raise ConfigError(
            f"{where}.gpus: {model!r} does not fit on {part.gpus} {part.gpu}. {last}"
        ) from None
    raise ConfigError(f"{where}: {last}") from None


def _lacking(model: str, part: FleetPart, own: tuple[EngineProfile, ...]) -> str:
    """That a GPU has profiles, some of them the scenario's own, but none that would do."""
    known = {
        f"{one.model} on {one.tensor_parallel}": None
        for one in (*own, *shipped_profiles())
        if one.gpu == part.gpu
    }
    most = f"at most {part.gpus} GPUs" if part.gpus > 1 else "1 GPU"
    return (
        f"no profile of {model!r} on {most} of kind {part.gpu!r}; there are {', '.join(known)}. "
        "Change models or gpus, or make a profile with 'qlm profile fit'."
    )


def requests(scenario: Scenario, *, seed: int) -> Iterator[WorkloadRequest]:
    """The scenario's requests in order of arrival.

    Raises:
        ConfigError: a rate is missing or out of range, or nothing bounds the workload.
    """
    work = scenario.workload
    if work.requests is not None and not 1 <= work.requests <= REQUESTS_MAX:
        raise ConfigError(f"workload.requests: {work.requests}. Give 1 to {REQUESTS_MAX}.")
    try:
        _check_keys(work)
        streams = _streams(work)
        arrivals = generate(streams, seed=seed, requests=work.requests)
    except ConfigError as error:
        raise ConfigError(f"workload.{error}") from None
    _check_batches(scenario)
    for index, stream in enumerate(streams):
        where = f"workload.streams[{index}]" if work.streams else "workload"
        if stream.rate_rps:
            _check_served(stream, scenario, where)
    return arrivals


def _check_served(stream: Stream, scenario: Scenario, where: str) -> None:
    if stream.slo_class not in scenario.slo_classes:
        known = ", ".join(scenario.slo_classes)
        raise ConfigError(
            f"{where}: the class {stream.slo_class!r} is not one of slo_classes ({known})."
        )
    served = {model: None for part in scenario.fleet for model in part.models}
    for model in stream.models.names:
        if model not in served:
            raise ConfigError(
                f"{where}: no instance serves {model!r}. Add it to fleet[...].models."
            )


def _check_batches(scenario: Scenario) -> None:
    served = {model: None for part in scenario.fleet for model in part.models}
    for index, one in enumerate(scenario.workload.batches):
        try:
            check_batch(one, scenario.slo_classes, served)
        except ConfigError as error:
            raise ConfigError(f"workload.batches[{index}].{error}") from None


def _check_keys(work: WorkloadConfig) -> None:
    """Refuse what only another kind of workload reads, since it would be ignored."""
    for key in work.__struct_fields__:
        kinds = [kind for kind, keys in _KEYS.items() if key in keys]
        if kinds and work.kind not in kinds and getattr(work, key) not in (None, ()):
            known = " or ".join(kinds)
            raise ConfigError(f"{key}: only with kind {known}, not with {work.kind}. Remove it.")


def _streams(work: WorkloadConfig) -> tuple[Stream, ...]:
    if work.kind == "streams":
        if not work.streams and not work.batches:
            raise ConfigError("streams: empty. Give at least one stream, or a workload's `kind`.")
        return tuple(_stream(one, f"streams[{index}]") for index, one in enumerate(work.streams))
    streams = _of_the_paper(work)
    if not any(stream.rate_rps for stream in streams):
        raise ConfigError(f"{_FIRST_RATE[work.kind]}: 0, as all other rates. Give one above 0.")
    return streams


def _stream(one: StreamConfig, where: str) -> Stream:
    if not one.rate_rps:
        raise ConfigError(f"{where}.rate_rps: 0. Give requests per second, or remove the stream.")
    models = _mix(one.models, f"{where}.models")
    try:
        return Stream(
            slo_class=one.slo_class,
            models=models,
            rate_rps=one.rate_rps,
            cv=one.cv,
            lengths=one.lengths,
            requests=one.requests,
            start_s=one.start_s,
            until_s=one.until_s,
            max_tokens=one.max_tokens,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


_FIRST_RATE = {"W_A": "interactive_rps", "W_B": "batch_1_rps", "W_C": "batch_1_rps"}


def _of_the_paper(work: WorkloadConfig) -> tuple[Stream, ...]:
    cv = 1.0 if work.cv is None else work.cv
    if work.kind == "W_A":
        return workload_a(
            interactive_rps=_given(work.interactive_rps, "interactive_rps", work.kind),
            model="vicuna-13b" if work.model is None else work.model,
            batch_1_rps=work.batch_1_rps,
            batch_2_rps=work.batch_2_rps,
            cv=cv,
        )
    rate = _given(work.batch_1_rps, "batch_1_rps", work.kind)
    mixes = {
        "batch_1": _mix(work.batch_1_models, "batch_1_models", W_B_BATCH_1),
        "batch_2": _mix(work.batch_2_models, "batch_2_models", W_B_BATCH_2),
    }
    if work.kind == "W_B":
        return workload_b(batch_1_rps=rate, batch_2_rps=work.batch_2_rps, cv=cv, **mixes)
    return workload_c(
        mega_rps=_given(work.mega_rps, "mega_rps", work.kind),
        batch_1_rps=rate,
        batch_2_rps=work.batch_2_rps,
        cv=cv,
        **mixes,
    )


def _mix(shares: dict[str, float] | None, key: str, otherwise: Mix | None = None) -> Mix:
    if shares is None and otherwise is not None:
        return otherwise
    if not shares:
        raise ConfigError(f"{key}: empty. Name at least one model, as in {{vicuna-13b: 1}}.")
    try:
        return Mix(tuple(shares.items()))
    except ConfigError as error:
        raise ConfigError(f"{key}: {str(error).removeprefix('mix: ')}") from None


def _given(value: float | None, key: str, kind: str) -> float:
    if value is None:
        raise ConfigError(f"{key}: missing. {kind} needs it; give requests per second.")
    return value


def _check(scenario: Scenario) -> None:
    if not scenario.fleet:
        raise ConfigError("fleet: empty. Give at least one entry with gpu and models.")
    for index, part in enumerate(scenario.fleet):
        _check_part(part, f"fleet[{index}]")
    total = sum(part.count for part in scenario.fleet)
    if total > INSTANCES_MAX:
        raise ConfigError(f"fleet: {total} instances; at most {INSTANCES_MAX}.")
    if not 1 <= len(scenario.slo_classes) <= CLASSES_MAX:
        raise ConfigError(
            f"slo_classes: {len(scenario.slo_classes)} classes. Give 1 to {CLASSES_MAX}."
        )
    for name, base in scenario.adapters.items():
        if base in scenario.adapters:
            raise ConfigError(f"adapters.{name}: {base!r} is an adapter itself. Name its base.")
    for section in ("slo_classes", "solver", "executor", "simulation"):
        check_numbers(getattr(scenario, section), section)
    if not scenario.policies:
        raise ConfigError("policies: empty. Name at least one, or leave it out for the default.")


def _check_part(part: FleetPart, where: str) -> None:
    if not 0 <= part.max_loras <= LORAS_MAX:
        raise ConfigError(f"{where}.max_loras: {part.max_loras}. Give 0 to {LORAS_MAX}.")
    if not 1 <= part.count <= INSTANCES_MAX:
        raise ConfigError(f"{where}.count: {part.count}. Give 1 to {INSTANCES_MAX}.")
    if not 1 <= part.gpus <= GPUS_MAX:
        raise ConfigError(f"{where}.gpus: {part.gpus}. Give 1 to {GPUS_MAX}, for each instance.")
    if not 0 <= part.host_memory_gb <= HOST_MEMORY_MAX_GB:
        raise ConfigError(
            f"{where}.host_memory_gb: {part.host_memory_gb:g}. Give 0 to {HOST_MEMORY_MAX_GB:g}."
        )


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
