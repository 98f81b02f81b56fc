"""`qlm bench finish`: whether batches end when it was said that they would, on random simulated beds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qlm_core.errors import ConfigError

BEDS, QUICK_BEDS = 60, 8


def add_parser(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subjects.add_parser(
        "finish",
        help="whether batches end when it was said, on random simulated beds",
        description="Draws beds with batches beside other requests from a seed, runs each with and without its "
        "batches, and tells how often the finish times and verdicts held that were said.",
    )
    parser.add_argument("--beds", type=int, help=f"how many (default: {BEDS}; ten minutes of CPU)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BEDS} beds: about a minute")
    parser.add_argument("--bed", type=int, help="one of them, batch by batch")
    parser.add_argument("--seed", type=int, default=1, help="that they are drawn from")
    parser.add_argument("--jobs", type=int, default=1, help="beds at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")


def run(args: argparse.Namespace) -> int:
    """Run, print tables, write files; status 1 if a request was lost or answered twice."""
    from qlm import finish_bench

    beds = _checked(args)
    results = finish_bench.run_beds(args.seed, beds, jobs=args.jobs, progress=_progress)
    if args.bed is None:
        print(finish_bench.report(results))
    else:
        print(finish_bench.bed_report(results[0]))
    if args.json is not None:
        finish_bench.write(results, args.json)
    return 1 if any(one["lost"] for one in results) else 0


def _checked(args: argparse.Namespace) -> list[int]:
    """The numbers of the beds. Raises ConfigError for options that do not go together."""
    for option, least in (("beds", 1), ("jobs", 1), ("bed", 0), ("seed", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ConfigError(f"--{option}: {value}. Give at least {least}.")
    asked = [option for option in ("beds", "bed") if getattr(args, option) is not None]
    if len(asked) + args.quick > 1:
        raise ConfigError("--beds, --bed, --quick: they say how many beds there are. Give one.")
    if args.bed is not None:
        return [args.bed]
    return list(range(QUICK_BEDS if args.quick else args.beds or BEDS))


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
