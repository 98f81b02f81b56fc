"""`qlm bench regret`: every policy on random beds, and how far `qlm` is behind the best of the others."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from qlm_core.errors import ConfigError

BEDS = 60


def add_parser(subparsers: Any) -> None:
    """Add `regret` to the subjects of `qlm bench`."""
    parser = subparsers.add_parser(
        "regret", help="every policy on random beds: how far qlm is behind the best rival"
    )
    parser.add_argument("--beds", type=int, metavar="N", help=f"how many (default: {BEDS})")
    parser.add_argument("--bed", type=int, metavar="I", help="this one alone, with all its figures")
    parser.add_argument("--seed", type=int, default=0, help="that the beds are drawn from")
    parser.add_argument("--policy", default="", metavar="NAME,...", help="default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="regret of each policy")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.yaml", help="with --bed: only write it as a scenario"
    )


def run(args: argparse.Namespace) -> int:
    """Run, print tables, write files; status 1 if a request was lost or answered twice."""
    from qlm import regret
    from qlm_core.sim.beds import draw_bed

    names = _checked(args)
    if args.save is not None:
        bed = draw_bed(args.seed, args.bed)
        regret.save_bed(bed, names, args.save)
        print(f"qlm sim {args.save} --seed {bed.run_seed}")
        return 0
    beds = range(BEDS if args.beds is None else args.beds) if args.bed is None else [args.bed]
    results = regret.run_beds(args.seed, beds, names, jobs=args.jobs, progress=_progress)
    if args.bed is None:
        print(regret.report(results))
    else:
        print(regret.bed_report(results[0]))
    if args.json is not None:
        _write(args.json, json.dumps(regret.figures(results), indent=1))
    if args.plot is not None:
        regret.plot(results, args.plot)
    missing = sum(one["lost"] + one["duplicated"] for result in results for one in result.runs)
    return 1 if missing else 0


def _checked(args: argparse.Namespace) -> tuple[str, ...]:
    """The policies asked for, none for all. Raises ConfigError for options that do not go together."""
    from qlm.regret import OURS, REFERENCE

    for option in ("beds", "jobs"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise ConfigError(f"--{option}: {value}. Give at least 1.")
    for option in ("bed", "seed"):
        if (value := getattr(args, option)) is not None and value < 0:
            raise ConfigError(f"--{option}: {value}. Give at least 0.")
    if args.bed is not None and args.beds is not None:
        raise ConfigError("--bed: it is one of them, --beds is many. Give one of both.")
    if args.save is not None and args.bed is None:
        raise ConfigError("--save: which bed? Name one with --bed.")
    names = tuple(word.strip() for word in args.policy.split(",") if word.strip())
    rivals = [name for name in names if name not in (OURS, REFERENCE)]
    compares = args.bed is None or args.json is not None or args.plot is not None
    if names and compares and (OURS not in names or not rivals):
        raise ConfigError(
            f"--policy: regret is of {OURS!r} and a rival. Name both, or leave it out."
        )
    return names


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give another name.") from None


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
