"""`qlm gateway`: one gateway as a process of its own."""

from __future__ import annotations

import argparse

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.service import add_supervised

    parser = subparsers.add_parser("gateway", help="run a gateway")
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from gateway.service import serve
    from qlm import ports, service

    config = options.config_of(args)
    addresses = {
        key: address
        for key, address in ports.listeners(config).items()
        if key.startswith("gateway.")
    }
    ports.require_free(addresses)
    return service.run(
        lambda ready: serve(config, ready=ready), log=config.log, supervised=args.supervised
    )
