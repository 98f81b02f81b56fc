"""`qlm whatif`: what would change with more or fewer instances, for the fleet as it is now or for a workload from a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qlm import look
from qlm.commands import options

_OF_TRACE = ("fleet", "mix", "limit")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "whatif",
        help="say what would change with more or fewer instances",
        usage="qlm whatif [SCENARIO.yaml|TRACE] [--add GPU=N] [--remove GPU=N] [options]",
        description="Without a file, the solver plans what waits now with and without the change. With one, the workload is"
        " simulated on both fleets (docs/autoscaling.md).",
    )
    parser.add_argument("file", nargs="?", help="a scenario, or a trace or log of requests")
    for option, text in (("--add", "instances more"), ("--remove", "instances fewer")):
        parser.add_argument(
            option, action="append", default=[], metavar="GPU=N", help=f"so many {text}"
        )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    simulated = parser.add_argument_group("for a file")
    simulated.add_argument("--seed", type=int, help="of the simulation (default: 0)")
    simulated.add_argument("--jobs", type=int, help="simulations at once (default: 2)")
    simulated.add_argument(
        "--fleet", metavar="FILE", help="for a trace, a scenario whose fleet to use"
    )
    simulated.add_argument(
        "--mix",
        help="for a trace, shares of classes for rows without one (default: as of `qlm sim`)",
    )
    simulated.add_argument("--limit", type=int, help="for a trace, most requests")
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, simulated or for real, and print."""
    import json

    from qlm import what_ifs

    changes = what_ifs.changes_of(args.add, args.remove)
    answer = _asked(args, changes) if args.file is None else _simulated(args, changes)
    if args.json:
        print(json.dumps(answer, indent=2))
        return 0
    look.console().print(*what_ifs.tables(answer))
    return 0


def _asked(args: argparse.Namespace, changes: dict[str, int]) -> dict[str, Any]:
    from qlm_core.errors import ConfigError

    for name in ("seed", "jobs", *_OF_TRACE):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for a file. Name one, or leave it out.")
    with options.client_of(args) as client:
        return client.what_if(changes)


def _simulated(args: argparse.Namespace, changes: dict[str, int]) -> dict[str, Any]:
    from qlm import simulations, what_ifs
    from qlm_core.errors import ConfigError

    for name, least in (("jobs", 1), ("seed", 0), ("limit", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: {value} is out of range. Give at least {least}.")
    path = Path(args.file)
    if path.suffix in (".yaml", ".yml"):
        for name in _OF_TRACE:
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} is for a trace. Leave it out.")
        bed = simulations.bed_of_scenario(path)
    else:
        bed = simulations.bed_of_trace(
            path,
            fleet=Path(args.fleet) if args.fleet else None,
            mix=args.mix,
            models=None,
            rate_scale=1.0,
            limit=args.limit,
        )
    return what_ifs.simulated(
        bed, changes, seed=args.seed or 0, jobs=args.jobs or 2, progress=_progress
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
