"""The rules of a configuration that types alone cannot say: ranges, addresses, names that must be there.

What is wrong is found here, when a file is read, rather than later by the process that trips over it. Each complaint
names the path and the remedy.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from qlm_core.errors import ConfigError

if TYPE_CHECKING:
    from qlm_core.config import AgentConfig, Config

# Keys at which 0 would stop the service or have it spin, wherever they stand.
_ABOVE_0 = (
    "agent_lease_s",
    "agents_max",
    "aim",
    "attempts_max",
    "background_budget_s",
    "backlog_events_max",
    "body_bytes_max",
    "body_s_max",
    "bound_period_s",
    "budget_s",
    "connect_timeout_s",
    "connections_max",
    "delta",
    "e2e_s",
    "gateway_lease_s",
    "gateways_max",
    "history",
    "max_model_len",
    "max_num_seqs",
    "message_bytes_max",
    "open_requests_max",
    "output_share",
    "period_s",
    "port_base",
    "prior_output_tokens",
    "pull_timeout_s",
    "reconnect_s_max",
    "report_interval_s",
    "request_ttl_s",
    "requests_max",
    "restart_backoff_s",
    "slo_ttft_s_max",
    "start_timeout_s",
    "stream_backlog_chunks_max",
    "time_scale",
    "tpot_s",
    "ttft_s",
    "waiting_requests_max",
    "window_requests",
)
_MOST = {
    "aim": 1.0,
    "kv_headroom": 0.9,
    "output_share": 1.0,
    "port_base": 65_535,
    "rest_share": 1.0,
}


def check(config: Config) -> None:
    """Raise ConfigError for the first rule that is broken."""
    if not config.models:
        raise ConfigError("models: empty. Name at least one model.")
    if config.default_slo_class not in config.slo_classes:
        known = ", ".join(config.slo_classes)
        raise ConfigError(
            f"default_slo_class: {config.default_slo_class!r} is not one of slo_classes ({known})."
        )
    _check_tiers(config)
    _check_agents(config)
    for path, value in _numbers(config, ""):
        _check_number(path, value)
    if not config.gateway.id:
        raise ConfigError("gateway.id: empty. Give the gateway a name.")
    for path, address in (
        ("solver.listen", config.solver.listen),
        ("gateway.http_listen", config.gateway.http_listen),
        ("gateway.grpc_listen", config.gateway.grpc_listen),
        ("gateway.solver", config.gateway.solver),
    ):
        parse_address(address, path)
    for path, address in (
        ("solver.metrics_listen", config.solver.metrics_listen),
        ("gateway.advertise", config.gateway.advertise),
    ):
        if address:
            parse_address(address, path)


def parse_address(text: str, path: str) -> tuple[str, int]:
    """Split `host:port`. Raises ConfigError naming `path`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{path}: {text!r} is not host:port, for example 127.0.0.1:7400.")
    return host, int(port)


def _check_number(path: str, value: float) -> None:
    if not isfinite(value) or value < 0:
        raise ConfigError(f"{path}: must be a finite number of at least 0, not {value:g}.")
    key = path.rpartition(".")[2]
    if not value and key in _ABOVE_0:
        raise ConfigError(f"{path}: must be above 0. Leave it out for the default.")
    if value > _MOST.get(key, value):
        raise ConfigError(f"{path}: must be at most {_MOST[key]:g}, not {value:g}.")


def _check_tiers(config: Config) -> None:
    tiers: dict[str, str] = {}
    for name, section in config.slo_classes.items():
        for tier in section.service_tiers:
            if tier in tiers:
                raise ConfigError(
                    f"slo_classes.{name}.service_tiers: {tier!r} already selects "
                    f"{tiers[tier]!r}. A tier selects one class."
                )
            tiers[tier] = name


def _check_agents(config: Config) -> None:
    names: dict[str, None] = {}
    for index, agent in enumerate(config.agents):
        where = f"agents[{index}]"
        if not agent.name:
            raise ConfigError(f"{where}.name: empty. Give the agent a name.")
        if agent.name in names:
            raise ConfigError(f"{where}.name: {agent.name!r} is used twice. Names are unique.")
        names[agent.name] = None
        if not agent.models:
            raise ConfigError(f"{where}.models: empty. Name at least one of `models`.")
        for model in agent.models:
            if model not in config.models:
                known = ", ".join(config.models)
                raise ConfigError(f"{where}.models: {model!r} is not in `models` ({known}).")
        parse_address(agent.solver, f"{where}.solver")
        if agent.metrics_listen:
            parse_address(agent.metrics_listen, f"{where}.metrics_listen")
        _check_engine(agent, where)


def _check_engine(agent: AgentConfig, where: str) -> None:
    engine = agent.engine
    if engine.kind == "openai":
        if len(agent.models) != 1:
            raise ConfigError(
                f"{where}.models: an openai engine serves one model, not {len(agent.models)}. "
                "Give each server an agent of its own."
            )
        if not _is_url(engine.openai.base_url):
            raise ConfigError(
                f"{where}.engine.openai.base_url: {engine.openai.base_url!r} is no address. Give "
                "the server's, for example http://127.0.0.1:8000."
            )
        if not engine.openai.health_path.startswith("/"):
            raise ConfigError(
                f"{where}.engine.openai.health_path: {engine.openai.health_path!r} does not begin "
                "with /. Write it as /health."
            )
    if engine.kind == "vllm" and not engine.vllm.command:
        raise ConfigError(f"{where}.engine.vllm.command: empty. Leave it out for `vllm serve`.")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _numbers(value: object, path: str) -> list[tuple[str, float]]:
    """Every number in the tree with its path."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [(path, float(value))]
    if isinstance(value, msgspec.Struct):
        items = [(name, getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    found: list[tuple[str, float]] = []
    for name, item in items:
        found.extend(_numbers(item, f"{path}.{name}".strip(".")))
    return found
