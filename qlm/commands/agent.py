"""`qlm agent`: one agent as a process of its own, or all agents of a host below one supervisor."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from qlm_core.config import Config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.service import add_supervised

    parser = subparsers.add_parser("agent", help="run one agent, or all agents of a host")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="its name among `agents` of the configuration")
    which.add_argument(
        "--host",
        help="run every agent whose `host` is this, each as a process, restarted if it dies",
    )
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from agents.daemon import serve
    from qlm import ports, service

    config = options.config_of(args)
    if args.host is not None:
        return _run_host(config, args)
    agent = config.agent(args.name)
    if agent.metrics_listen:
        ports.require_free({f"agents.{agent.name}.metrics_listen": agent.metrics_listen})
    return service.run(
        lambda ready: serve(
            config, agent, ready=ready, joined=service.say_joined if args.supervised else None
        ),
        log=config.log,
        supervised=args.supervised,
    )


def _run_host(config: Config, args: argparse.Namespace) -> int:
    from qlm import fleet, ports, service

    names = fleet.agents_of_host(config, args.host)
    ports.require_free(ports.listeners_of_agents(config, names))
    arguments = options.config_arguments(args)
    return service.run(
        lambda ready: _serve_host(config, args.host, arguments, ready),
        log=config.log,
        supervised=args.supervised,
    )


async def _serve_host(
    config: Config, host: str, arguments: list[str], ready: Callable[..., None]
) -> None:
    from qlm import fleet

    names = fleet.agents_of_host(config, host)
    for name in names:
        print(fleet.place_of(config.agent(name)), flush=True)
    specs = fleet.agent_children(names, arguments)
    async with fleet.supervisor(config, arguments, log=None, specs=specs) as supervisor:
        print(f"{host}: all of them have started; stop with Ctrl-C", flush=True)
        ready()
        await supervisor.wait()
