"""`qlm sim`: compare policies on a simulated fleet, replay a trace on one, size a fleet, write a scenario."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlm.simulations import Bed

_FORMS = ("trace", "new", "size")
_NUMBERS = (("seeds", 1), ("jobs", 1), ("largest", 1), ("seed", 0), ("limit", 1))
_PLOTS = (".png", ".svg", ".pdf")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "sim",
        help="simulate a fleet and compare policies",
        usage="qlm sim SCENARIO.yaml [options]\n"
        "       qlm sim trace TRACE [--fleet FLEET.yaml] [--mix CLASS=SHARE,...] [options]\n"
        "       qlm sim size TRACE|SCENARIO.yaml [--gpu GPU,...] [--target SHARE] [options]\n"
        "       qlm sim new [FILE]",
        description="Policies and scenario files are described in docs/simulator.md.",
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
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures here; - is standard output"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw attainment here (.png, .svg, .pdf)")
    trace = parser.add_argument_group("for a trace")
    trace.add_argument(
        "--fleet",
        metavar="FILE",
        help="a scenario whose fleet and settings to use (default: the fleet of qlm demo)",
    )
    trace.add_argument(
        "--mix",
        default="interactive=0.5,batch-1=0.3,batch-2=0.2",
        help="SLO classes and their shares (default: %(default)s)",
    )
    trace.add_argument("--models", help="models and their shares (default: the fleet's, equally)")
    trace.add_argument(
        "--rate-scale", type=float, default=1.0, help="how much faster than the trace"
    )
    trace.add_argument("--limit", type=int, default=None, help="most requests")
    size = parser.add_argument_group("for sizing")
    size.add_argument(
        "--target", type=float, default=0.99, help="attainment to reach (default: %(default)s)"
    )
    size.add_argument("--gpu", metavar="GPU,...", help="classes of GPU to try (default: all)")
    size.add_argument(
        "--largest", type=int, default=64, help="most instances tried (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Simulate and report; status 1 when a request was lost or no fleet reaches the target."""
    from qlm import simulations

    _check(args)
    if args.what == "new":
        return _new(args.file)
    bed = _bed(args)
    if args.what == "size":
        return _size(args, bed)
    names = _listed(args.policy) or list(bed.scenario.policies)
    without = tuple(_listed(args.without))
    seeds = range(args.seed, args.seed + args.seeds)
    runs = simulations.run_all(
        bed, names, seeds, without=without, jobs=args.jobs, progress=_progress
    )
    _write(args.json, simulations.to_json(runs))
    if args.plot:
        simulations.plot_attainment(runs, Path(args.plot), title=bed.scenario.name)
    if args.json != "-":
        print(simulations.table(runs))
    return 1 if any(one["lost"] or one["duplicated"] for one in runs) else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what could only fail after minutes of simulation."""
    from qlm_core.errors import ConfigError

    for name, least in _NUMBERS:
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: {value} is out of range. Give at least {least}.")
    if not 0.0 < args.target <= 1.0:
        raise ConfigError(f"--target: {args.target} is out of range. Give a share up to 1.")
    if args.what in ("trace", "size") and args.file is None:
        raise ConfigError(f"qlm sim {args.what}: FILE is missing. Name a trace.")
    if args.what not in _FORMS and args.file is not None:
        raise ConfigError(
            f"{args.file}: one scenario at a time. For a trace, write qlm sim trace {args.file}."
        )
    for option in ("json", "plot"):
        name = getattr(args, option)
        if name and name != "-" and not Path(name).absolute().parent.is_dir():
            raise ConfigError(f"--{option}: {name}: no such folder. Make it first.")
    if args.plot and Path(args.plot).suffix not in _PLOTS:
        raise ConfigError(f"--plot: {args.plot}: give a name that ends in {', '.join(_PLOTS)}.")


def _new(name: str | None) -> int:
    from qlm import simulations

    if name is None:
        print(simulations.TEMPLATE, end="")
        return 0
    simulations.write_template(Path(name))
    print(f"wrote {name}; run it with: qlm sim {name}")
    return 0


def _bed(args: argparse.Namespace) -> Bed:
    from qlm import simulations

    if args.what not in _FORMS:
        return simulations.bed_of_scenario(Path(args.what))
    if Path(args.file).suffix in (".yaml", ".yml"):
        return simulations.bed_of_scenario(Path(args.file))
    return simulations.bed_of_trace(
        Path(args.file),
        fleet=Path(args.fleet) if args.fleet else None,
        mix=args.mix,
        models=args.models,
        rate_scale=args.rate_scale,
        limit=args.limit,
    )


def _size(args: argparse.Namespace, bed: Bed) -> int:
    from qlm import fleet_sizing
    from qlm_core.errors import ConfigError
    from qlm_core.sim.policies import policy_named

    policy = (_listed(args.policy) or ["qlm"])[0]
    policy_named(policy)
    known = fleet_sizing.known_gpus(bed.scenario)
    gpus = _listed(args.gpu) or known
    for gpu in gpus:
        if gpu not in known:
            raise ConfigError(f"--gpu: {gpu!r} is unknown. Use some of {', '.join(known)}.")
    found = fleet_sizing.sizes(
        bed,
        gpus,
        policy=policy,
        target=args.target,
        largest=args.largest,
        seed=args.seed,
        jobs=args.jobs,
        progress=_progress,
    )
    _write(args.json, fleet_sizing.to_json(found, args.target))
    if args.plot:
        title = f"{bed.scenario.name}: attainment by size of the fleet"
        fleet_sizing.plot(found, args.target, Path(args.plot), title=title)
    if args.json != "-":
        print(fleet_sizing.describe(found, args.target, args.largest))
    return 0 if any(one.smallest is not None for one in found) else 1


def _listed(text: str | None) -> list[str]:
    """The parts of `A, B`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _write(name: str | None, text: str) -> None:
    from qlm_core.errors import ConfigError

    if name == "-":
        print(text)
    elif name:
        try:
            Path(name).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json: {name}: {error.strerror}.") from None


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
