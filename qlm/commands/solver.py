"""`qlm solver`: one solver as a process of its own."""

from __future__ import annotations

import argparse

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.service import add_supervised

    parser = subparsers.add_parser("solver", help="run the solver")
    options.add_config(parser)
    add_supervised(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from qlm import ports, service
    from solver.service import serve

    config = options.config_of(args)
    addresses = {
        key: address
        for key, address in ports.listeners(config).items()
        if key.startswith("solver.")
    }
    ports.require_free(addresses)
    return service.run(
        lambda ready: serve(config, ready=ready), log=config.log, supervised=args.supervised
    )
