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

# For starting, beyond what models may take.
START_S = 60.0
# For hanging up and closing stores, beyond what draining and stopping engines may take.
STOP_S = 15.0


def children(config: Config, arguments: list[str]) -> list[ChildSpec]:
    """Solver, gateway and every configured agent, each started with `arguments` (--config, --set)."""
    common = tuple(arguments)
    specs = [
        ChildSpec(name="solver", arguments=("solver", *common)),
        ChildSpec(name="gateway", arguments=("gateway", *common)),
    ]
    for agent in config.agents:
        specs.append(ChildSpec(name=agent.name, arguments=("agent", "--name", agent.name, *common)))
    return specs


def supervisor(config: Config, arguments: list[str], *, log: Log | None) -> Supervisor:
    """A supervisor for that fleet; without `log` its children log to standard error, prefixed."""
    specs = children(config, arguments)
    write = log or PrefixedLog(max(len(spec.name) for spec in specs))
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
    """Writes each line to standard error behind the name of the process it comes from; never waits for its reader."""

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, name: str, line: str) -> None:
        logs.standard_error().put(f"{name:<{self._width}} | {line}")


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
