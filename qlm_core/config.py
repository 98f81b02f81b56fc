"""The shape of `config.yaml`: one frozen tree, strict, with a default for everything.

This module only describes values; `qlm_core.config_rules` and `qlm_core.config_doors` check them, and reading files and
environment variables is the face's job (`qlm.config_file`). Each process gets the whole tree at start-up and hands its
parts down.
Sizes are in the unit that ends the name; every queue, message and wait has a limit here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qlm_core import fleet_template
from qlm_core.config_access import AuthConfig, ServerTlsConfig, TenantConfig, TlsConfig
from qlm_core.config_agents import (
    AgentConfig,
    AgentDefaults,
    Dialect,
    EngineConfig,
    EngineKind,
    ExecutorConfig,
    OpenAIEngineConfig,
    SimEngineConfig,
    VllmEngineConfig,
    without_keys,
)
from qlm_core.config_batches import BatchesConfig
from qlm_core.config_doors import check_doors
from qlm_core.config_files import FilesConfig
from qlm_core.config_messages import readable
from qlm_core.config_ray import RayConfig, RayGpuConfig, check_ray
from qlm_core.config_rules import check
from qlm_core.config_section import Section, read_secret
from qlm_core.config_tracing import TracingConfig, check_tracing
from qlm_core.config_ui import UiConfig
from qlm_core.config_webhooks import WebhookConfig, check_webhooks
from qlm_core.errors import ConfigError
from qlm_core.model import Slo, SloClass
from qlm_core.nearest import did_you_mean
from qlm_core.secret import Secret

__all__ = [
    "AgentConfig",
    "AgentDefaults",
    "BackendName",
    "Config",
    "Dialect",
    "EngineConfig",
    "EngineKind",
    "ExecutorConfig",
    "FormulationName",
    "GatewayConfig",
    "GatewayLimits",
    "GroupingConfig",
    "GurobiConfig",
    "LogConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OpenAIEngineConfig",
    "RayConfig",
    "RayGpuConfig",
    "ReplanConfig",
    "RwtConfig",
    "SimEngineConfig",
    "SloClassConfig",
    "SolverConfig",
    "SolverLimits",
    "StoreConfig",
    "VllmEngineConfig",
]

BackendName = Literal["auto", "gurobi", "highs", "pulp", "cpsat", "search", "greedy"]
FormulationName = Literal["paths", "slot", "arc", "block"]


class ModelConfig(Section, frozen=True, kw_only=True):
    """One served model. `path` is what the engine loads; the key is the name clients use.

    base, adapter: of a LoRA adapter the model that it was made for, and where it lies.
    max_model_len: of an adapter its base's unless stated.
    """

    path: str = ""
    max_model_len: int = 8192
    base: str = ""
    adapter: str = ""


class SloClassConfig(Section, frozen=True, kw_only=True):
    """Targets and weight of one SLO class, and the `service_tier` values that select it.

    shed_late: a request is refused when its target cannot be met, instead of being served late.
    """

    ttft_s: float
    tpot_s: float | None = None
    e2e_s: float | None = None
    weight: float = 1.0
    service_tiers: tuple[str, ...] = ()
    shed_late: bool = False


class GroupingConfig(Section, frozen=True, kw_only=True):
    """How requests become request groups (paper §4, Algorithm 1)."""

    delta: float = 4.0
    span_ratio: float = 0.25
    requests_max: int = 4096


class ReplanConfig(Section, frozen=True, kw_only=True):
    """When the planner runs. It never runs on the request path."""

    min_interval_s: float = 0.1
    period_s: float = 5.0
    bound_period_s: float = 30.0


class ObjectiveConfig(Section, frozen=True, kw_only=True):
    """Weights of the planning objective (docs/planning.md).

    late: cost of one weighted late request; tardiness: per weighted request-second;
    swap: per second of model swapping; move: per request of a group that changes queue;
    completion: per weighted request-second of completion time (tie-break);
    aim: share of each target that plans aim at, since one that is kept to the second is late by seconds;
    rest_share: of an output of which nothing but the first token is promised, the share for which the next first
    tokens are planned to wait.
    """

    late: float = 30.0
    tardiness: float = 0.02
    swap: float = 1.0
    move: float = 0.005
    completion: float = 0.001
    aim: float = 0.9
    rest_share: float = 0.1


class GurobiConfig(Section, frozen=True, kw_only=True):
    """Web licence for Gurobi. Write `${NAME}` to take a value from the environment."""

    access_id: Secret = Secret()
    secret: Secret = Secret()
    license: Secret = Secret()


class RwtConfig(Section, frozen=True, kw_only=True):
    """Priors and learning rates of the waiting-time estimator.

    token_throughput: tokens/s per model, used as the whole profile where no better one is known.
    """

    prior_output_tokens: int = 220
    history: int = 512
    token_throughput: dict[str, float] = {}


class SolverLimits(Section, frozen=True, kw_only=True):
    """Bounds on what the solver holds.

    batches_max: so many batches are planned as a whole, a batch of two models as two; of others only what is released.
    """

    waiting_requests_max: int = 500_000
    batches_max: int = 10_000
    agents_max: int = 2_000
    gateways_max: int = 64
    message_bytes_max: int = 67_108_864


class SolverConfig(Section, frozen=True, kw_only=True):
    """The solver service: control only, no prompts, no durable state."""

    listen: str = "127.0.0.1:7401"
    metrics_listen: str = "127.0.0.1:7491"
    backend: BackendName = "auto"
    formulation: FormulationName = "paths"
    budget_s: float = 0.2
    background_budget_s: float = 2.0
    seed: int = 0
    window_requests: int = 256
    agent_lease_s: float = 6.0
    gateway_lease_s: float = 30.0
    grouping: GroupingConfig = GroupingConfig()
    replan: ReplanConfig = ReplanConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rwt: RwtConfig = RwtConfig()
    gurobi: GurobiConfig = GurobiConfig()
    limits: SolverLimits = SolverLimits()


class StoreConfig(Section, frozen=True, kw_only=True):
    """The durable store. `kind: memory` keeps nothing across a restart (benchmarks, tests).

    files: the folder of uploaded files; empty: beside `path`. With `kind: memory` they are in a folder made in it, or
        among the system's temporary ones, that is removed at the end.
    """

    kind: Literal["sqlite", "memory"] = "sqlite"
    path: str = "run/qlm.sqlite"
    files: str = ""
    commit_interval_s: float = 0.002
    fsync: bool = False
    keep_finished_s: float = 86_400.0


class GatewayLimits(Section, frozen=True, kw_only=True):
    """Bounds on what one gateway accepts and holds.

    prompts_max: prompts in one completion. response_items_max: input items of one response. response_chain_max: responses that
    one goes on from by `previous_response_id`, one after the other. waiting_bytes_max: bodies of all open requests.
    uploading_bytes_max: bodies that are still arriving. stream_backlog_bytes_max: output that one stream's client has not
    taken. unread_bytes_max: the same of all clients. header_s_max, idle_s_max, write_s_max: how long a client may take for the
    head of a request, between two requests, and without reading anything of an answer. webhook_tries_max,
    webhook_backlog_max: of one webhook so many deliveries are tried at a time, and so many wait at most. webhook_s_max: how
    long one try may take.
    """

    body_bytes_max: int = 8_388_608
    prompts_max: int = 4_096
    response_items_max: int = 4_096
    response_chain_max: int = 256
    body_s_max: float = 60.0
    header_bytes_max: int = 65_536
    headers_max: int = 128
    header_s_max: float = 30.0
    idle_s_max: float = 75.0
    write_s_max: float = 60.0
    open_requests_max: int = 100_000
    waiting_bytes_max: int = 1_073_741_824
    uploading_bytes_max: int = 268_435_456
    stored_output_bytes_max: int = 16_777_216
    connections_max: int = 16_384
    connections_per_address_max: int = 8_192
    grpc_connections_max: int = 2_048
    grpc_streams_max: int = 1_024
    slo_ttft_s_max: float = 604_800.0
    stream_backlog_chunks_max: int = 4_096
    stream_backlog_bytes_max: int = 4_194_304
    unread_bytes_max: int = 268_435_456
    webhook_tries_max: int = 16
    webhook_s_max: float = 15.0
    webhook_backlog_max: int = 100_000
    message_bytes_max: int = 67_108_864


class GatewayConfig(Section, frozen=True, kw_only=True):
    """One gateway: OpenAI-compatible HTTP and gRPC, the ledger, the store.

    api_keys: plain keys, each a tenant of its own, or tenants by name; empty: everybody may come in.
    """

    id: str = "gateway-0"
    http_listen: str = "127.0.0.1:7400"
    grpc_listen: str = "127.0.0.1:7402"
    agents_listen: str = "127.0.0.1:7403"
    advertise: str = ""
    solver: str = "127.0.0.1:7401"
    api_keys: tuple[Secret, ...] | dict[str, TenantConfig] = ()
    tls: ServerTlsConfig = ServerTlsConfig()
    agent_grace_s: float = 1.0
    attempts_max: int = 10
    request_ttl_s: float = 86_400.0
    drain_s: float = 10.0
    heartbeat_s: float = 0.0
    cors_origins: tuple[str, ...] = ()
    store: StoreConfig = StoreConfig()
    files: FilesConfig = FilesConfig()
    batches: BatchesConfig = BatchesConfig()
    webhooks: tuple[WebhookConfig, ...] = ()
    ui: UiConfig = UiConfig()
    tracing: TracingConfig = TracingConfig()
    limits: GatewayLimits = GatewayLimits()


class LogConfig(Section, frozen=True, kw_only=True):
    """Structured logs on standard error. Prompts never appear in them.

    access: whether gateways log every call of clients (docs/operations.md).
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "text"
    access: bool = False


def _default_models() -> dict[str, ModelConfig]:
    return {
        "mistral-7b": ModelConfig(max_model_len=8192),
        "vicuna-13b": ModelConfig(max_model_len=4096),
    }


def _default_classes() -> dict[str, SloClassConfig]:
    # The classes of the paper's evaluation (§8): 20 s, 1 min and 1 h to the first token. Whoever reads along is promised a
    # pace as well, or an output may pause for minutes: 0.2 s a token is what people read (MLPerf Inference, server).
    return {
        "interactive": SloClassConfig(
            ttft_s=20.0,
            tpot_s=0.2,
            weight=4.0,
            service_tiers=("auto", "default", "scale", "priority", "fast"),
        ),
        "batch-1": SloClassConfig(ttft_s=60.0, weight=2.0, service_tiers=("flex",)),
        "batch-2": SloClassConfig(ttft_s=3600.0, weight=1.0, service_tiers=("background",)),
    }


def _default_agents() -> tuple[AgentConfig, ...]:
    agents = fleet_template.filled({})["agents"]
    return msgspec.convert(agents, tuple[AgentConfig, ...], dec_hook=read_secret)


class Config(Section, frozen=True, kw_only=True):
    """The whole of `config.yaml`, in full: `from_mapping` has filled in what follows from `host`, `port_base` and
    `agent_defaults`.
    """

    host: str = fleet_template.HOST
    port_base: int = fleet_template.PORT_BASE
    models: dict[str, ModelConfig] = msgspec.field(default_factory=_default_models)
    slo_classes: dict[str, SloClassConfig] = msgspec.field(default_factory=_default_classes)
    default_slo_class: str = "interactive"
    solver: SolverConfig = SolverConfig()
    gateway: GatewayConfig = GatewayConfig()
    agent_defaults: AgentDefaults = AgentDefaults()
    agents: tuple[AgentConfig, ...] = msgspec.field(default_factory=_default_agents)
    ray: RayConfig = RayConfig()
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig = TlsConfig()
    insecure: bool = False
    log: LogConfig = LogConfig()

    def slo_class(self, name: str) -> SloClass:
        """The class called `name` as a value. Raises KeyError for an unknown name."""
        section = self.slo_classes[name]
        slo = Slo(ttft_s=section.ttft_s, tpot_s=section.tpot_s, e2e_s=section.e2e_s)
        return SloClass(name=name, slo=slo, weight=section.weight, shed_late=section.shed_late)

    def base_of(self, model: str) -> str:
        """The model whose engine serves a model: itself, or what it is an adapter of."""
        return self.models[model].base or model

    def agent(self, name: str) -> AgentConfig:
        """The agent section called `name`. Raises ConfigError for an unknown name."""
        for section in self.agents:
            if section.name == name:
                return section
        known = ", ".join(section.name for section in self.agents) or "none"
        meant = did_you_mean(name, (section.name for section in self.agents))
        raise ConfigError(f"agents: no agent is called {name!r}; known: {known}.{meant}")

    @staticmethod
    def from_mapping(data: object) -> Config:
        """Build and check the tree from plain data (as YAML gives it).

        Raises:
            ConfigError: naming the path of the offending key and the remedy.
        """
        data = fleet_template.filled(_with_lengths_of_bases({} if data is None else data))
        try:
            config = msgspec.convert(data, Config, dec_hook=read_secret)
        except msgspec.ValidationError as error:
            raise ConfigError(readable(str(error), data, Config, _fits)) from None
        except UnicodeError:
            raise ConfigError(
                "a text has half a character in it (a lone surrogate). Write the whole character."
            ) from None
        fleet_template.check(config)
        check(config)
        check_doors(config)
        check_webhooks(config.gateway.webhooks)
        check_tracing(config.gateway.tracing)
        check_ray(config.ray)
        return config

    def to_mapping(self, *, redact: bool = True) -> dict[str, Any]:
        """Plain data that `from_mapping` accepts; secrets are masked unless `redact` is False."""

        def shown(value: object) -> str:
            assert isinstance(value, Secret)
            return str(value) if redact else value.reveal()

        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=shown)
        if redact:
            for agent in (plain["agent_defaults"], *plain["agents"]):
                section = agent["engine"]["vllm"]
                for key in ("command", "args"):
                    section[key] = without_keys(section[key])
        return plain


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=read_secret)
    except msgspec.ValidationError:
        return False
    return True


def _with_lengths_of_bases(data: Any) -> Any:
    """The same data; adapters that say nothing of `max_model_len` say what their bases do."""
    models = data.get("models") if isinstance(data, dict) else None
    if not isinstance(models, dict):
        return data
    filled = {}
    for name, model in models.items():
        filled[name] = model
        name_of = model.get("base") if isinstance(model, dict) else None
        base = models.get(name_of) if isinstance(name_of, str) else None
        if isinstance(base, dict) and "max_model_len" in base:
            filled[name] = {"max_model_len": base["max_model_len"]} | model
    return data | {"models": filled}
