"""`qlm watch ID`: the answer of a request that was submitted before."""

from __future__ import annotations

import argparse

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "watch", help="print the answer of a request that was submitted before"
    )
    parser.add_argument("id", help="the request, as `qlm submit` or the API named it")
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print it from its beginning, as it comes if it runs yet; status 1 unless the request finished."""
    from qlm.commands.submit import follow

    with options.client_of(args) as client:
        return follow(client.watch(args.id), args.id)
