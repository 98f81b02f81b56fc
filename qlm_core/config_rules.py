"""The rules of a configuration that types alone cannot say: ranges, addresses, names that must be there.

What is wrong is found here, when a file is read, rather than later by the process that trips over it. Each complaint
names the path and the remedy. Scenarios of the simulator have sections of a configuration; their numbers are checked by
the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from qlm_core.errors import ConfigError
from qlm_core.nearest import did_you_mean

if TYPE_CHECKING:
    from qlm_core.config import AgentConfig, Config, VllmEngineConfig

# Keys at which 0 would stop the service or have it spin, wherever they stand.
_ABOVE_0 = (
    "agent_lease_s",
    "agents_max",
    "aim",
    "attempts_max",
    "background_budget_s",
    "backlog_bytes_max",
    "backlog_events_max",
    "batch_file_bytes_max",
    "body_bytes_max",
    "body_s_max",
    "bound_period_s",
    "budget_s",
    "connect_timeout_s",
    "connections_max",
    "connections_per_address_max",
    "delta",
    "e2e_s",
    "embedding_inputs_max",
    "faults_max",
    "file_bytes_max",
    "gateway_lease_s",
    "gateways_max",
    "grpc_connections_max",
    "grpc_streams_max",
    "header_bytes_max",
    "header_s_max",
    "headers_max",
    "history",
    "idle_s_max",
    "lines_max",
    "max_cpu_loras",
    "max_loras",
    "max_model_len",
    "max_num_seqs",
    "message_bytes_max",
    "open_batches_max",
    "open_bytes_max",
    "open_requests_max",
    "output_share",
    "period_s",
    "port_base",
    "prior_output_tokens",
    "prompts_max",
    "pull_timeout_s",
    "reconnect_s_max",
    "refresh_s",
    "report_interval_s",
    "request_ttl_s",
    "requests_max",
    "response_chain_max",
    "response_items_max",
    "restart_backoff_s",
    "slo_ttft_s_max",
    "solve_work",
    "start_timeout_s",
    "stories_max",
    "stream_backlog_bytes_max",
    "stream_backlog_chunks_max",
    "tenant_bytes_max",
    "tenant_files_max",
    "tenant_open_batches_max",
    "tenant_uploads_max",
    "time_scale",
    "token_throughput",
    "total_bytes_max",
    "total_files_max",
    "tpot_s",
    "ttft_s",
    "unread_bytes_max",
    "upload_idle_s_max",
    "uploading_bytes_max",
    "uploads_max",
    "viewers_max",
    "waiting_bytes_max",
    "waiting_lines_max",
    "waiting_requests_max",
    "webhook_backlog_max",
    "webhook_s_max",
    "webhook_tries_max",
    "window_requests",
    "window_s_max",
    "window_s_min",
    "write_s_max",
)
# A clock that goes round faster than this gets nothing else done, and added to a large time it stands still. An engine
# that is slower than this has waits that no float holds.
_LEAST = {
    "period_s": 0.001,
    "pull_timeout_s": 0.001,
    "report_interval_s": 0.001,
    "token_throughput": 0.001,
}
_MOST = {
    "aim": 1.0,
    "kv_headroom": 0.9,
    "output_share": 1.0,
    "port_base": 65_535,
    "rest_share": 1.0,
}
# Far beyond any use, and so small that products of several numbers stay finite.
_MOST_SECONDS = 1e9
_MOST_OTHERWISE = 1e18
# The ranks for which vLLM has kernels.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# More than a message to an agent holds beside the body of a request and its output so far.
_MESSAGE_REST_BYTES = 65_536
_LEAST_HEARTBEAT_S = 0.001
# Of one batch: what the solver is told of it must fit a message, and where its lines are a row of the store.
_LINES_MAX = 10_000_000
_PORT = re.compile(r"[0-9]{1,5}")


def check(config: Config) -> None:
    """Raise ConfigError for the first rule that is broken."""
    if not config.models:
        raise ConfigError("models: empty. Name at least one model.")
    if config.default_slo_class not in config.slo_classes:
        known = ", ".join(config.slo_classes)
        raise ConfigError(
            f"default_slo_class: {config.default_slo_class!r} is not one of slo_classes ({known})."
            f"{did_you_mean(config.default_slo_class, config.slo_classes)}"
        )
    _check_tiers(config)
    _check_adapters(config)
    _check_agents(config)
    check_numbers(config, "")
    _check_message_sizes(config)
    _check_heartbeat(config.gateway.heartbeat_s)
    _check_budgets(config)
    _check_batches(config)
    if not config.gateway.id:
        raise ConfigError("gateway.id: empty. Give the gateway a name.")
    for path, address in (
        ("solver.listen", config.solver.listen),
        ("gateway.http_listen", config.gateway.http_listen),
        ("gateway.grpc_listen", config.gateway.grpc_listen),
        ("gateway.agents_listen", config.gateway.agents_listen),
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
    if not (colon and host and _PORT.fullmatch(port)) or int(port) > 65_535:
        raise ConfigError(f"{path}: {text!r} is not host:port, for example 127.0.0.1:7400.")
    return host, int(port)


def check_numbers(section: object, path: str) -> None:
    """Raise ConfigError for the first number out of range in a section that stands at `path`."""
    for where, key, value in _numbers(section, path, ""):
        _check_number(where, key, value)


def _check_number(path: str, key: str, value: float) -> None:
    least = _LEAST.get(key, 0)
    above_0 = key in _ABOVE_0
    # A class without a time to first token promises nothing; every other key has a default.
    remedy = " Give seconds." if key == "ttft_s" else " Leave it out for the default."
    if above_0 and not value:
        raise ConfigError(f"{path}: must be above 0.{remedy}")
    if not 0 <= value < inf:
        bound = "above 0" if above_0 else "of at least 0"
        raise ConfigError(f"{path}: must be a finite number {bound}, not {_plain(value)}.{remedy}")
    if value < least:
        raise ConfigError(f"{path}: must be at least {least:g}, not {_plain(value)}.")
    otherwise = _MOST_SECONDS if key.endswith(("_s", "_s_max")) else _MOST_OTHERWISE
    most = _MOST.get(key, otherwise)
    if value > most:
        raise ConfigError(f"{path}: must be at most {most:g}, not {_plain(value)}.")


def _plain(value: float) -> str:
    # YAML's whole numbers may be larger than any float.
    if isinstance(value, int) and abs(value) > _MOST_OTHERWISE:
        return f"a number of {len(str(abs(value)))} digits"
    return f"{value:g}" if isinstance(value, float) else str(value)


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


def _check_adapters(config: Config) -> None:
    for name, model in config.models.items():
        where = f"models.{name}"
        if not model.base:
            if model.adapter:
                raise ConfigError(f"{where}.base: missing. Name the model that the adapter is of.")
            continue
        base = config.models.get(model.base)
        if base is None:
            known = ", ".join(config.models)
            meant = did_you_mean(model.base, config.models)
            raise ConfigError(f"{where}.base: {model.base!r} is not in `models` ({known}).{meant}")
        if base.base:
            raise ConfigError(
                f"{where}.base: {model.base!r} is an adapter itself. Name the model that both are "
                f"of ({base.base!r})."
            )
        if model.max_model_len > base.max_model_len:
            raise ConfigError(
                f"{where}.max_model_len: {model.max_model_len} is more than its base has "
                f"({base.max_model_len}). Leave it out for the base's."
            )


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
                meant = did_you_mean(model, config.models)
                raise ConfigError(f"{where}.models: {model!r} is not in `models` ({known}).{meant}")
            _check_served(config, agent, model, where)
        parse_address(agent.solver, f"{where}.solver")
        if agent.metrics_listen:
            parse_address(agent.metrics_listen, f"{where}.metrics_listen")
        _check_reports(config, agent, where)
        _check_engine(config, agent, where)


def _check_reports(config: Config, agent: AgentConfig, where: str) -> None:
    # One report may be lost with a stream; an agent whose next one comes too late would be lost again and again.
    most_s = config.solver.agent_lease_s / 2
    if agent.report_interval_s > most_s:
        raise ConfigError(
            f"{where}.report_interval_s: {_plain(agent.report_interval_s)} is more than half of "
            f"solver.agent_lease_s. Use at most {most_s:g}, or raise the lease."
        )


def _check_served(config: Config, agent: AgentConfig, model: str, where: str) -> None:
    base = config.base_of(model)
    if base not in agent.models:
        raise ConfigError(
            f"{where}.models: {model!r} is an adapter of {base!r}, which is not among them. Add it: "
            "the two are served by one engine."
        )
    if base != model and agent.engine.kind == "vllm" and not config.models[model].adapter:
        raise ConfigError(
            f"models.{model}.adapter: empty, and agent {agent.name!r} has to load it. Give the "
            "adapter's directory or hub name."
        )


def _check_heartbeat(heartbeat_s: float) -> None:
    if 0 < heartbeat_s < _LEAST_HEARTBEAT_S:
        raise ConfigError(
            f"gateway.heartbeat_s: must be 0 for none, or at least {_LEAST_HEARTBEAT_S:g}, not "
            f"{_plain(heartbeat_s)}."
        )


def _check_budgets(config: Config) -> None:
    # What holds less than one body would refuse that body for ever.
    limits = config.gateway.limits
    for key in ("waiting_bytes_max", "uploading_bytes_max"):
        if getattr(limits, key) < limits.body_bytes_max:
            raise ConfigError(
                f"gateway.limits.{key}: {getattr(limits, key)} is less than one body may have "
                f"(body_bytes_max, {limits.body_bytes_max}). Raise it, or lower that."
            )


def _check_batches(config: Config) -> None:
    section = config.gateway.batches
    if section.slo_class and section.slo_class not in config.slo_classes:
        known = ", ".join(config.slo_classes)
        raise ConfigError(
            f"gateway.batches.slo_class: {section.slo_class!r} is not one of slo_classes ({known})."
        )
    if section.window_s_min > section.window_s_max:
        raise ConfigError(
            f"gateway.batches.window_s_min: {_plain(section.window_s_min)} is more than window_s_max "
            f"({_plain(section.window_s_max)}). Lower it, or raise that."
        )
    if section.lines_max > _LINES_MAX:
        raise ConfigError(f"gateway.batches.lines_max: must be at most {_LINES_MAX}.")


def _check_message_sizes(config: Config) -> None:
    # What is too large for a message breaks an agent's stream, with every request on it.
    limits = config.gateway.limits
    needed = limits.body_bytes_max + limits.stored_output_bytes_max + _MESSAGE_REST_BYTES
    sizes = {"gateway.limits.message_bytes_max": limits.message_bytes_max}
    for index, agent in enumerate(config.agents):
        sizes[f"agents[{index}].message_bytes_max"] = agent.message_bytes_max
    for path, size in sizes.items():
        if size < needed:
            raise ConfigError(
                f"{path}: {size} is too small for a request of gateway.limits.body_bytes_max "
                f"({limits.body_bytes_max}) with output of stored_output_bytes_max "
                f"({limits.stored_output_bytes_max}). Raise message_bytes_max of the gateway and "
                f"of every agent to at least {needed}."
            )


def _check_engine(config: Config, agent: AgentConfig, where: str) -> None:
    engine = agent.engine
    if engine.kind == "openai":
        bases = dict.fromkeys(config.base_of(model) for model in agent.models)
        if len(bases) != 1:
            raise ConfigError(
                f"{where}.models: an openai engine serves one model and its adapters, not "
                f"{len(bases)} models. Give each server an agent of its own."
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
    if engine.kind == "vllm":
        _check_vllm(engine.vllm, agent.gpu, f"{where}.engine.vllm")


def _check_vllm(section: VllmEngineConfig, gpu: str, where: str) -> None:
    if not section.command:
        raise ConfigError(f"{where}.command: empty. Leave it out for `vllm serve`.")
    if section.kv_offload_bytes and gpu == "cpu":
        raise ConfigError(
            f"{where}.kv_offload_bytes: vLLM moves KV blocks from GPUs only. Leave it out on a CPU."
        )
    if section.max_cpu_loras < section.max_loras:
        raise ConfigError(
            f"{where}.max_cpu_loras: {section.max_cpu_loras} is less than max_loras "
            f"({section.max_loras}). What runs is loaded: raise it."
        )
    if section.max_lora_rank not in _LORA_RANKS:
        ranks = ", ".join(map(str, _LORA_RANKS))
        raise ConfigError(
            f"{where}.max_lora_rank: {section.max_lora_rank} is none of vLLM's. Use {ranks}."
        )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _numbers(value: object, path: str, key: str) -> Iterator[tuple[str, str, float]]:
    """Every number in the tree: its path, the key that has rules, and itself."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, key, value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _numbers(getattr(value, name), f"{path}.{name}".removeprefix("."), name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}[{index}]", key)
    elif isinstance(value, dict):
        # Its keys are names of the user's, which say nothing of what they lead to.
        for name, item in value.items():
            yield from _numbers(item, f"{path}.{name}", key)
