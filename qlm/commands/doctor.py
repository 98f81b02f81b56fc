"""`qlm doctor`: reaches every part of a fleet, and says what is wrong and what to do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from qlm.doctor import Finding, Gateway
    from qlm_core.config import Config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("doctor", help="find out what is wrong with a fleet")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options.add_http(parser)
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Look at everything; status 1 if something is wrong."""
    import asyncio
    import dataclasses
    import json

    from qlm import config_file
    from qlm.doctor import Gateway

    config = options.config_of(args)
    gateway = Gateway(
        url=options.url_of(args),
        grpc=options.address_of(args),
        api_key=options.key_of(args),
        ca=options.ca_of(args),
    )
    said = config_file.said(args.config, args.overrides)
    found = asyncio.run(_examined(config, gateway, said, quiet=args.json))
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    wrong = sum(not finding.well for finding in found)
    if not args.json:
        verb = "is" if wrong == 1 else "are"
        print("all is well" if not wrong else f"{wrong} of {len(found)} {verb} not well")
    return 1 if wrong else 0


async def _examined(
    config: Config, gateway: Gateway, said: tuple[str, ...], *, quiet: bool
) -> list[Finding]:
    from qlm.doctor import examine

    found = []
    async for finding in examine(config, gateway, said):
        found.append(finding)
        if not quiet:
            print(line_of(finding), flush=True)
    return found


def line_of(finding: Finding) -> str:
    """A finding in a line, and its remedy in another one."""
    line = f"{'ok   ' if finding.well else 'WRONG'}  {finding.part}: {finding.found}"
    return f"{line}\n       {finding.remedy}" if finding.remedy else line
