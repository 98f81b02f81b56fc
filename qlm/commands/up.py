"""`qlm up`: a whole fleet on this machine from one configuration."""

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

    parser = subparsers.add_parser("up", help="start solver, gateway and agents on this machine")
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Keep the fleet running until SIGTERM or SIGINT."""
    from qlm import ports, service

    config = options.config_of(args)
    ports.require_free(ports.listeners(config))
    arguments = options.config_arguments(args)
    return service.run(
        lambda ready: _serve(config, arguments, ready), log=config.log, supervised=args.supervised
    )


async def _serve(config: Config, arguments: list[str], ready: Callable[..., None]) -> None:
    from qlm import fleet

    scheme = "https" if config.gateway.tls.cert else "http"
    async with fleet.supervisor(config, arguments, log=None) as supervisor:
        print(
            f"QLM serves {_served(config)}\n"
            f"  OpenAI-compatible  {scheme}://{config.gateway.http_listen}/v1\n"
            f"  gRPC               {config.gateway.grpc_listen}\n"
            "  stop with Ctrl-C",
            flush=True,
        )
        ready()
        await supervisor.wait()


def _served(config: Config) -> str:
    """The models, and by how many agents each."""
    counts = {
        model: sum(model in agent.models for agent in config.agents) for model in config.models
    }
    return ", ".join(f"{model} on {_agents(count)}" for model, count in counts.items())


def _agents(count: int) -> str:
    return "1 agent" if count == 1 else f"{count or 'no'} agents"
