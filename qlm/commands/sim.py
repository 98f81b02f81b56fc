"""`qlm sim`: compare policies on a simulated fleet, replay a trace on one, size a fleet, write a scenario."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlm.simulations import Bed

_FIRST = {"trace", "new", "size"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "sim",
        help="simulate a fleet and compare policies",
        usage="qlm sim SCENARIO|trace|new|size ...",
        description="Forms: qlm sim SCENARIO.yaml; qlm sim trace FILE; qlm sim size FILE; qlm sim new FILE.",
    )
    parser.add_argument("what", metavar="SCENARIO", help="a scenario file, or trace, size or new")
    parser.add_argument("file", nargs="?", help="the trace, or the scenario to write")
    parser.add_argument(
        "--policy", metavar="A,B", help="policies to compare (default: the scenario's)"
    )
    parser.add_argument(
        "--without",
        metavar="LSO,...",
        default="",
        help="take LSOs out of qlm: eviction, kv-swap, warm-start, load-balancing",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each policy")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures here; - is standard output"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw attainment here (PNG or SVG)")
    trace = parser.add_argument_group("for a trace")
    trace.add_argument("--fleet", metavar="FILE", help="a scenario whose fleet and settings to use")
    trace.add_argument(
        "--mix", default="interactive=0.5,batch-1=0.3,batch-2=0.2", help="SLO classes"
    )
    trace.add_argument("--models", help="models and their shares (default: the fleet's, equally)")
    trace.add_argument(
        "--rate-scale", type=float, default=1.0, help="how much faster than the trace"
    )
    trace.add_argument("--limit", type=int, default=None, help="most requests")
    size = parser.add_argument_group("for sizing")
    size.add_argument("--target", type=float, default=0.99, help="attainment to reach")
    size.add_argument("--gpu", help="the class of GPU to vary (default: the fleet's first)")
    size.add_argument("--largest", type=int, default=64, help="largest number of instances tried")


def run(args: argparse.Namespace) -> int:
    """Simulate and report."""
    from qlm import simulations
    from qlm_core.errors import ConfigError

    for name, least in (("seeds", 1), ("jobs", 1), ("largest", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name}: must be at least {least}.")
    if args.what in _FIRST and args.file is None:
        raise ConfigError(f"qlm sim {args.what}: FILE is missing.")
    if args.what == "new":
        simulations.write_template(Path(args.file))
        print(f"wrote {args.file}; run it with: qlm sim {args.file}")
        return 0
    bed = _bed(args)
    if args.what == "size":
        return _size(args, bed)
    names = args.policy.split(",") if args.policy else list(bed.scenario.policies)
    without = tuple(part for part in args.without.split(",") if part)
    seeds = range(args.seed, args.seed + args.seeds)
    runs = simulations.run_all(
        bed, names, seeds, without=without, jobs=args.jobs, progress=_progress
    )
    if args.json == "-":
        print(simulations.to_json(runs))
        return 0
    if args.json:
        Path(args.json).write_text(simulations.to_json(runs) + "\n", encoding="utf-8")
    if args.plot:
        simulations.plot_attainment(runs, Path(args.plot), title=bed.scenario.name)
    print(simulations.table(runs))
    return 0


def _bed(args: argparse.Namespace) -> Bed:
    from qlm import simulations

    if args.what not in _FIRST:
        return simulations.bed_of_scenario(Path(args.what))
    return simulations.bed_of_trace(
        Path(args.file),
        fleet=Path(args.fleet) if args.fleet else None,
        mix=args.mix,
        models=args.models,
        rate_scale=args.rate_scale,
        limit=args.limit,
    )


def _size(args: argparse.Namespace, bed: Bed) -> int:
    from qlm import simulations

    policy = (args.policy or "qlm").split(",")[0]
    tried, smallest = simulations.smallest_fleet(
        bed,
        policy=policy,
        target=args.target,
        gpu=args.gpu,
        largest=args.largest,
        seed=args.seed,
        progress=_progress,
    )
    for count in sorted(tried):
        print(f"{count:5d} instances  {tried[count]:7.2%}")
    if args.plot:
        simulations.plot_sizes(tried, args.target, Path(args.plot))
    if args.json:
        text = simulations.sizes_to_json(tried, smallest, args.target)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")
    if smallest is None:
        print(f"no fleet of up to {args.largest} instances reaches {args.target:.1%}")
        return 1
    print(f"smallest fleet for {args.target:.1%}: {smallest} instances")
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
