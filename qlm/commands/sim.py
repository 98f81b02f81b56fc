"""`qlm sim`: compare policies on a simulated fleet, replay a trace on one, size a fleet, write a scenario, run under faults."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qlm.simulations import Bed, Run
    from qlm_core.sim.bound import Bound

_FORMS = ("trace", "new", "size")
_NUMBERS = (("seeds", 1), ("jobs", 1), ("largest", 1), ("seed", 0), ("limit", 1))
_PLOTS = (".png", ".svg", ".pdf")

_OF_TRACE = {
    "fleet": None,
    "mix": None,
    "models": None,
    "rate_scale": 1.0,
    "limit": None,
}
_OF_SIZING = {"target": 0.99, "gpu": None, "largest": 64}
_OF_COMPARING = {"seeds": "1", "without": "", "bound": False}
_OF_KNEE = {"knee": None}
_OF_EACH_CLASS = {"each_class": False}
_OF_FAULTS = {"events": None, "keep": None}
"""Options of one form only, with their defaults."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "sim",
        help="simulate a fleet and compare policies",
        usage="qlm sim SCENARIO.yaml [--knee SHARE] [options]\n"
        "       qlm sim trace TRACE [--fleet FLEET.yaml] [--mix CLASS=SHARE,...] [options]\n"
        "       qlm sim size TRACE|SCENARIO.yaml [--gpu GPU,...] [--target SHARE] [options]\n"
        "       qlm sim new [FILE]\n"
        "       qlm sim faults --seeds A:B | --seed N | --events FILE [--keep FILE]",
        description="Policies and scenario files are described in docs/simulator.md.",
    )
    parser.add_argument(
        "what", metavar="SCENARIO", help="a scenario file, or trace, size, new or faults"
    )
    parser.add_argument("file", nargs="?", help="the trace, or the scenario to write")
    parser.add_argument(
        "--policy", metavar="A,B", help="policies to compare (default: the scenario's)"
    )
    parser.add_argument(
        "--without",
        metavar="LSO,...",
        help="take LSOs out of qlm: eviction, kv-swap, warm-start, load-balancing",
    )
    parser.add_argument(
        "--seeds", metavar="N", help="runs of each policy (default: 1); for faults, the seeds A:B"
    )
    parser.add_argument(
        "--seed", type=int, help="the first seed (default: 0); for faults, the one to trace"
    )
    parser.add_argument(
        "--knee",
        type=float,
        metavar="SHARE",
        help="find the highest rate at which each policy keeps this share of the targets",
    )
    parser.add_argument(
        "--each-class",
        action="store_true",
        default=None,
        help="with --knee: of every class for itself",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures here; - is standard output"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw attainment here (.png, .svg, .pdf)")
    parser.add_argument(
        "--bound",
        action="store_true",
        default=None,
        help="also tell what no policy can exceed, and the share of it that each reaches",
    )
    trace = parser.add_argument_group("for a trace")
    trace.add_argument(
        "--fleet",
        metavar="FILE",
        help="a scenario whose fleet and settings to use (default: the fleet of qlm demo)",
    )
    trace.add_argument(
        "--mix",
        help="shares of SLO classes, for rows without one (default: interactive=0.5,batch-1=0.3,"
        "batch-2=0.2 as far as the fleet has them, else equal ones)",
    )
    trace.add_argument("--models", help="models and their shares (default: the fleet's, equally)")
    trace.add_argument("--rate-scale", type=float, help="how much faster than the trace")
    trace.add_argument("--limit", type=int, help="most requests")
    faults = parser.add_argument_group("for faults")
    faults.add_argument("--events", metavar="FILE", help="a schedule of requests and faults to run")
    faults.add_argument("--keep", metavar="FILE", help="write the shortest failing schedule here")
    size = parser.add_argument_group("for sizing")
    size.add_argument(
        "--target",
        type=float,
        help=f"attainment to reach (default: {_OF_SIZING['target']})",
    )
    size.add_argument("--gpu", metavar="GPU,...", help="classes of GPU to try (default: all)")
    size.add_argument(
        "--largest",
        type=int,
        help=f"most instances tried (default: {_OF_SIZING['largest']})",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate and report; status 1 when a request was lost or no fleet reaches the target."""
    from qlm import bounds, simulations
    from qlm_core.errors import ConfigError

    if args.what == "faults":
        return _faults(args)
    _settle(args)
    _check(args)
    if args.what == "new":
        return _new(args.file)
    bed = _bed(args)
    if args.what == "size":
        return _size(args, bed)
    names = _listed(args.policy) or list(bed.scenario.policies)
    without = tuple(dict.fromkeys(_listed(args.without)))
    if without and "qlm" not in names:
        raise ConfigError("--without: it takes LSOs out of qlm, which is not among the policies.")
    seeds = range(args.seed or 0, (args.seed or 0) + int(args.seeds))
    if bed.scenario.workload.batches and (args.bound or args.knee is not None):
        raise ConfigError(
            "workload.batches: --bound and --knee are of requests that arrive. Leave it out."
        )
    if args.knee is not None:
        return _knee(args, bed, names, seeds, without)
    runs = simulations.run_all(
        bed, names, seeds, without=without, jobs=args.jobs, progress=_progress
    )
    limits = _bounds(args, bed, seeds) if args.bound else {}
    _write(args.json, _json(runs, limits))
    if args.plot:
        simulations.plot_attainment(runs, Path(args.plot), title=bed.scenario.name)
    if args.json != "-":
        print(simulations.table(runs))
        if of_batches := simulations.batch_table(runs):
            print("\n" + of_batches)
        if note := simulations.cut_note(runs):
            print(note)
        if limits:
            print("\n" + bounds.table(bed, runs, limits))
    return 1 if any(one["lost"] or one["duplicated"] for one in runs) else 0


def _settle(args: argparse.Namespace) -> None:
    """Fill in what was left out, and refuse what does not apply: it would change nothing."""
    from qlm_core.errors import ConfigError

    of_trace = args.what in ("trace", "size") and not _is_scenario(args.file)
    for options, applies, where in (
        (_OF_TRACE, of_trace, "a trace"),
        (_OF_SIZING, args.what == "size", "qlm sim size"),
        (_OF_COMPARING, args.what not in ("size", "new"), "comparing policies"),
        (_OF_KNEE, args.what not in ("size", "new"), "comparing policies"),
        (_OF_EACH_CLASS, args.knee is not None, "qlm sim --knee"),
        (_OF_FAULTS, False, "qlm sim faults"),
    ):
        for name, default in options.items():
            if getattr(args, name) is None:
                setattr(args, name, default)
            elif not applies:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is for {where}. Leave it out.")


def _is_scenario(name: str | None) -> bool:
    return name is not None and Path(name).suffix in (".yaml", ".yml")


def _check(args: argparse.Namespace) -> None:
    """Refuse what could only fail after minutes of simulation."""
    from qlm.outputs import require_place
    from qlm_core.errors import ConfigError

    for name, least in _NUMBERS:
        value = _number(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: {value} is out of range. Give at least {least}.")
    if not 0.0 < args.target <= 1.0:
        raise ConfigError(f"--target: {args.target} is out of range. Give a share up to 1.")
    if args.knee is not None and not 0.0 < args.knee <= 1.0:
        raise ConfigError(f"--knee: {args.knee} is out of range. Give a share up to 1.")
    if args.what in ("trace", "size") and args.file is None:
        raise ConfigError(f"qlm sim {args.what}: FILE is missing. Name a trace.")
    if args.what not in _FORMS and args.file is not None:
        raise ConfigError(
            f"{args.file}: one scenario at a time. For a trace, write qlm sim trace {args.file}."
        )
    for option in ("json", "plot"):
        name = getattr(args, option)
        require_place(f"--{option}", None if name == "-" else name)
    if args.plot and Path(args.plot).suffix not in _PLOTS:
        raise ConfigError(f"--plot: {args.plot}: give a name that ends in {', '.join(_PLOTS)}.")


def _number(args: argparse.Namespace, name: str) -> int | None:
    """An option as a number."""
    from qlm_core.errors import ConfigError

    value = getattr(args, name)
    if not isinstance(value, str):
        return None if value is None else int(value)
    if not value.isdecimal():
        raise ConfigError(f"--{name}: {value!r} is no number. Give how many runs there are to be.")
    return int(value)


def _faults(args: argparse.Namespace) -> int:
    from qlm import fault_runs
    from qlm_core.errors import ConfigError

    others = [
        *_OF_TRACE,
        *_OF_SIZING,
        *_OF_KNEE,
        *_OF_EACH_CLASS,
        "without",
        "bound",
        "policy",
        "json",
        "plot",
        "file",
    ]
    for name in others:
        if getattr(args, name) is not None:
            option = "a second name" if name == "file" else "--" + name.replace("_", "-")
            raise ConfigError(f"qlm sim faults: {option} changes nothing here. Leave it out.")
    asked = [name for name in ("seeds", "seed", "events") if getattr(args, name) is not None]
    if len(asked) != 1:
        raise ConfigError("qlm sim faults: give one of --seeds A:B, --seed N and --events FILE.")
    if args.events is not None:
        return fault_runs.run_events(args.events, keep=args.keep)
    if args.seed is not None:
        return fault_runs.run_seed(args.seed, keep=args.keep)
    return fault_runs.run_seeds(fault_runs.seeds_of(args.seeds), jobs=args.jobs, keep=args.keep)


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
    if _is_scenario(args.file):
        return simulations.bed_of_scenario(Path(args.file))
    return simulations.bed_of_trace(
        Path(args.file),
        fleet=Path(args.fleet) if args.fleet else None,
        mix=args.mix,
        models=args.models,
        rate_scale=args.rate_scale,
        limit=args.limit,
    )


def _knee(
    args: argparse.Namespace,
    bed: Bed,
    policies: list[str],
    seeds: range,
    without: tuple[str, ...],
) -> int:
    from qlm import knee

    search = knee.Search(target=args.knee, each_class=args.each_class)
    load = knee.load_of(bed, seeds)
    policies = [*policies, knee.BOUND] if args.bound else policies
    found = knee.find_knees(
        load, policies, search, seeds, without=without, jobs=args.jobs, progress=_progress
    )
    _write(args.json, knee.to_json(found, search))
    if args.plot:
        knee.plot(found, args.knee, Path(args.plot), title=bed.scenario.name)
    if args.json != "-":
        print(knee.table(found, search))
    return 1 if any(each.faulty for one in found for each in one.tries) else 0


def _size(args: argparse.Namespace, bed: Bed) -> int:
    from qlm import fleet_sizing
    from qlm_core.errors import ConfigError
    from qlm_core.sim.policies import policy_named

    policies = _listed(args.policy) or ["qlm"]
    if len(policies) > 1:
        raise ConfigError(f"--policy: {args.policy}: qlm sim size takes one policy at a time.")
    [policy] = policies
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
        seed=args.seed or 0,
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


def _bounds(args: argparse.Namespace, bed: Bed, seeds: Sequence[int]) -> dict[int, Bound]:
    """What no policy exceeds, by seed."""
    from qlm import bounds

    found = bounds.bounds_of(
        [(bed, seed) for seed in seeds],
        [f"seed {seed}" for seed in seeds],
        jobs=args.jobs,
        progress=_progress,
    )
    return dict(zip(seeds, found, strict=True))


def _json(runs: list[Run], limits: dict[int, Bound]) -> str:
    import json

    from qlm import bounds, simulations

    if not limits:
        return simulations.to_json(runs)
    found = [bounds.figures(one, seed) for seed, one in limits.items()]
    return json.dumps({"runs": runs, "bounds": found}, indent=1)


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
