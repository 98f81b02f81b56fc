"""`qlm cancel ID`: ends a request, wherever it stands."""

from __future__ import annotations

import argparse

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("cancel", help="end a request, wherever it stands")
    parser.add_argument("id", help="the request, as `qlm submit` or the API named it")
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel it and print how it ended, now or before."""
    with options.client_of(args) as client:
        print(client.cancel(args.id).value)
    return 0
