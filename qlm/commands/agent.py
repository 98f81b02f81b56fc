"""`qlm agent`: one agent as a process of its own."""

from __future__ import annotations

import argparse

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.service import add_supervised

    parser = subparsers.add_parser("agent", help="run one agent")
    parser.add_argument(
        "--name", required=True, help="its name among `agents` of the configuration"
    )
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from agents.daemon import serve
    from qlm import ports, service

    config = options.config_of(args)
    agent = config.agent(args.name)
    if agent.metrics_listen:
        ports.require_free({f"agents.{agent.name}.metrics_listen": agent.metrics_listen})
    return service.run(
        lambda ready: serve(config, agent, ready=ready), log=config.log, supervised=args.supervised
    )
