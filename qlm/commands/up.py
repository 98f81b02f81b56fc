"""`qlm up`: a whole fleet on this machine from one configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from qlm.supervisor import Supervisor
    from qlm_core.config import Config

# Who has not joined after this long is said to be awaited; what is there serves meanwhile.
PATIENCE_S = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.service import add_supervised

    parser = subparsers.add_parser("up", help="start solver, gateway and agents on this machine")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--host",
        help="what agents call this machine: start those, and those without a host (default: all)",
    )
    which.add_argument(
        "--no-agents",
        action="store_true",
        help="start solver and gateway alone: agents run elsewhere, for example by `qlm ray up`",
    )
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Keep the fleet running until SIGTERM or SIGINT."""
    from qlm import fleet, ports, service

    config = options.config_of(args)
    names = [] if args.no_agents else fleet.agents_here(config, args.host)
    wanted = ports.listeners(config)
    left_out = {agent.name for agent in config.agents}.difference(names)
    for name in left_out:
        wanted.pop(f"agents.{name}.metrics_listen", None)
    ports.require_free(wanted)
    arguments = options.config_arguments(args)
    return service.run(
        lambda ready: _serve(config, names, arguments, ready),
        log=config.log,
        supervised=args.supervised,
    )


async def _serve(
    config: Config, names: Sequence[str], arguments: list[str], ready: Callable[..., None]
) -> None:
    import asyncio

    from qlm import fleet

    specs = fleet.children(config, arguments, names)
    async with fleet.supervisor(config, arguments, log=None, specs=specs) as supervisor:
        ready()
        announcing = asyncio.create_task(_announce(config, names, supervisor))
        try:
            await supervisor.wait()
        finally:
            announcing.cancel()
            await asyncio.wait([announcing])


async def _announce(config: Config, names: Sequence[str], supervisor: Supervisor) -> None:
    """Say what is served once agents have joined, and who joins later."""
    import asyncio

    waits = {asyncio.create_task(supervisor.until_joined(name)): name for name in names}
    try:
        if waits:
            await asyncio.wait(waits, timeout=PATIENCE_S)
        joined = [name for wait, name in waits.items() if wait.done()]
        if waits and not joined:
            print(f"no agent has joined yet: waiting for {', '.join(names)}", flush=True)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            joined = [name for wait, name in waits.items() if wait.done()]
        served = f"serves {_served(config, joined)}" if names else "waits for agents elsewhere"
        print(_banner(config, served), flush=True)
        late = {wait: name for wait, name in waits.items() if name not in joined}
        if late:
            print(f"  waiting for        {', '.join(late.values())}", flush=True)
        while late:
            done, _ = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
            joined += [late.pop(wait) for wait in list(late) if wait in done]
            print(f"QLM serves {_served(config, joined)}", flush=True)
    finally:
        for wait in waits:
            wait.cancel()


def _banner(config: Config, served: str) -> str:
    scheme = "https" if config.gateway.tls.cert else "http"
    return (
        f"QLM {served}\n"
        f"  OpenAI-compatible  {scheme}://{config.gateway.http_listen}/v1\n"
        f"  gRPC               {config.gateway.grpc_listen}\n"
        "  stop with Ctrl-C"
    )


def _served(config: Config, joined: Sequence[str]) -> str:
    """The models, and by how many agents each."""
    counts = {
        model: sum(model in config.agent(name).models for name in joined) for model in config.models
    }
    return ", ".join(f"{model} on {_agents(count)}" for model, count in counts.items())


def _agents(count: int) -> str:
    return "1 agent" if count == 1 else f"{count or 'no'} agents"
