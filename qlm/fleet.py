"""The fleet of one machine as children of a supervisor: which processes, and with which arguments."""

from __future__ import annotations

import sys

from qlm.supervisor import ChildSpec, Log, Supervisor
from qlm_core.config import Config

START_S = 60.0


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
    start_s = max(
        [
            START_S,
            *(a.engine.vllm.start_timeout_s for a in config.agents if a.engine.kind == "vllm"),
        ]
    )
    write = log or PrefixedLog(max(len(spec.name) for spec in specs))
    return Supervisor(specs, log=write, ready_timeout_s=start_s)


class PrefixedLog:
    """Writes each line to standard error behind the name of the process it comes from."""

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, name: str, line: str) -> None:
        print(f"{name:<{self._width}} | {line}", file=sys.stderr, flush=True)
