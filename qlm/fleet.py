"""The fleet of one machine as children of a supervisor: which processes, and with which arguments."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlm import config_file, logs, ports
from qlm.supervisor import ChildSpec, Log, Supervisor
from qlm_core.config import AgentConfig, Config
from qlm_core.config_reach import shared_ports
from qlm_core.errors import ConfigError
from qlm_core.nearest import did_you_mean

# For starting, beyond what models may take.
START_S = 60.0
# For hanging up and closing stores, beyond what draining and stopping engines may take.
STOP_S = 15.0


def children(
    config: Config, arguments: list[str], agents: Sequence[str] | None = None
) -> list[ChildSpec]:
    """Solver, gateway and agents (all unless named), each started with `arguments` (--config, --set)."""
    common = tuple(arguments)
    names = [agent.name for agent in config.agents] if agents is None else agents
    return [
        # Without it gateways and agents would look for another one while they drain.
        ChildSpec(name="solver", arguments=("solver", *common), last=True),
        ChildSpec(name="gateway", arguments=("gateway", *common)),
        *agent_children(names, arguments),
    ]


def agent_children(names: Sequence[str], arguments: list[str]) -> list[ChildSpec]:
    """These agents, each started with `arguments`."""
    return [ChildSpec(name=name, arguments=("agent", "--name", name, *arguments)) for name in names]


def agents_of_host(config: Config, host: str) -> list[str]:
    """The agents that a host runs. Raises ConfigError if it runs none."""
    names = [agent.name for agent in config.agents if agent.host == host]
    if not names:
        hosts = dict.fromkeys(agent.host for agent in config.agents if agent.host)
        known = ", ".join(hosts) or "none is named"
        raise ConfigError(
            f"agents: none is of the host {host!r}; hosts: {known}. Set `host` of its agents."
            f"{did_you_mean(host, hosts)}"
        )
    return names


def agents_here(config: Config, host: str | None) -> list[str]:
    """The agents that a whole fleet on this machine runs. Raises ConfigError.

    Args:
        host: what this machine is called; agents without a host are of it too.
    """
    hosts = dict.fromkeys(agent.host for agent in config.agents if agent.host)
    if host is None and len(hosts) > 1:
        raise ConfigError(
            f"agents: they are of several hosts ({', '.join(hosts)}). Say which is this one by --host, and run "
            "`qlm agent --host NAME` on the others."
        )
    if host is not None:
        agents_of_host(config, host)
    here = [
        index
        for index, agent in enumerate(config.agents)
        if host is None or agent.host in ("", host)
    ]
    for problem in shared_ports(config, here):
        raise ConfigError(problem)
    return [config.agents[index].name for index in here]


def place_of(agent: AgentConfig) -> str:
    """What an agent has of its machine, in one line."""
    parts = [f"{agent.name}: {agent.engine.kind} engine, {', '.join(agent.models)}"]
    if agent.devices:
        parts.append(f"CUDA_VISIBLE_DEVICES={','.join(map(str, agent.devices))}")
    if agent.tensor_parallel > 1:
        parts.append(f"tensor parallel {agent.tensor_parallel}")
    if agent.engine.kind == "vllm":
        parts.append(f"port {agent.engine.vllm.port_base}")
    return ", ".join(parts)


def supervisor(
    config: Config,
    arguments: list[str],
    *,
    log: Log | None,
    specs: Sequence[ChildSpec] | None = None,
) -> Supervisor:
    """A supervisor of the whole fleet, or of `specs`; without `log` its children log to standard error, prefixed."""
    specs = children(config, arguments) if specs is None else specs
    write = log or PrefixedLog(
        max(len(spec.name) for spec in specs), json=config.log.format == "json"
    )
    return Supervisor(
        specs, log=write, ready_timeout_s=ready_timeout_s(config), stop_grace_s=stop_grace_s(config)
    )


def ready_timeout_s(config: Config) -> float:
    """How long the processes may take until all of them serve: an agent starts its models one after another."""
    return START_S + max((_starts_s(config, agent) for agent in config.agents), default=0.0)


def stop_grace_s(config: Config) -> float:
    """How long the processes may take to stop: all drain at once, then agents stop their engines."""
    drains_s = (agent.drain_s + _stops_s(agent) for agent in config.agents)
    return STOP_S + max((config.gateway.drain_s, *drains_s))


def _starts_s(config: Config, agent: AgentConfig) -> float:
    if agent.engine.kind != "vllm":
        return 0.0
    section = agent.engine.vllm
    # Without sleep mode the others are started when they are swapped in.
    servers = sum(not config.models[model].base for model in agent.models)
    return section.start_timeout_s * (servers if section.sleep_mode else 1)


def _stops_s(agent: AgentConfig) -> float:
    return agent.engine.vllm.stop_timeout_s if agent.engine.kind == "vllm" else 0.0


class PrefixedLog:
    """Writes each line to standard error with the name of the process it comes from; never waits for its reader.

    Args:
        width: of the names.
        json: whether lines are JSON, and are to stay so.
    """

    def __init__(self, width: int, *, json: bool = False) -> None:
        self._width = width
        self._json = json

    def __call__(self, name: str, line: str) -> None:
        text = logs.with_part(name, line) if self._json else f"{name:<{self._width}} | {line}"
        logs.standard_error().put(text)


def temporary_config(
    folder: Path, overrides: Sequence[str] = (), *, base: Config | None = None
) -> Config:
    """A fleet (the default one without `base`) with overrides, on free loopback ports, its store in `folder`."""
    config = config_file.override(base or Config(), overrides)
    solver, metrics, http, grpc, work, *agents = ports.free_addresses(5 + len(config.agents))
    return config_file.override(
        config,
        [
            f"solver.listen={solver}",
            f"solver.metrics_listen={metrics}",
            f"gateway.http_listen={http}",
            f"gateway.grpc_listen={grpc}",
            f"gateway.agents_listen={work}",
            f"gateway.solver={solver}",
            f"gateway.store.path={folder / 'qlm.sqlite'}",
            "gateway.drain_s=0",
            f"agents.*.solver={solver}",
            "agents.*.drain_s=0",
            *(f"agents[{i}].metrics_listen={address}" for i, address in enumerate(agents)),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A fleet that runs: its configuration and the supervisor of its processes."""

    config: Config
    supervisor: Supervisor

    @property
    def url(self) -> str:
        """Where its gateway serves HTTP."""
        return f"http://{self.config.gateway.http_listen}"


@contextlib.asynccontextmanager
async def running(config: Config, folder: Path) -> AsyncIterator[Running]:
    """Run a fleet while the block runs; its log goes to `folder` and its end is shown on failure."""
    file = folder / "config.yaml"
    # Keys are in there: for this user's eyes only.
    file.touch(mode=0o600)
    file.write_text(config_file.to_yaml(config, redact=False))
    log = _LogFile(folder / "log.txt")
    try:
        async with supervisor(config, ["--config", str(file)], log=log) as started:
            yield Running(config=config, supervisor=started)
    except asyncio.CancelledError:
        raise
    except BaseException:
        log.show_end()
        raise
    finally:
        log.close()


class _LogFile:
    """Takes the lines that children log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", buffering=1, encoding="utf-8")

    def __call__(self, name: str, line: str) -> None:
        # A full disk must cost the lines alone.
        with contextlib.suppress(OSError):
            self._file.write(f"{name} | {line}\n")

    def show_end(self, lines: int = 20) -> None:
        for line in self._path.read_text().splitlines()[-lines:]:
            print(line, file=sys.stderr)

    def close(self) -> None:
        self._file.close()
