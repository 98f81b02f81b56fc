"""`qlm bench paper`: the paper's evaluation on simulated fleets, our numbers beside the published ones, and capacities."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from qlm_core.errors import QlmError


def add_parser(subparsers: Any) -> None:
    """Add `paper` to the subjects of `qlm bench`."""
    parser = subparsers.add_parser(
        "paper", help="every figure of the paper's evaluation, and capacities"
    )
    parser.add_argument("--quick", action="store_true", help="smaller beds, one seed: minutes")
    parser.add_argument("--seeds", type=int, help="runs of each policy (default 5; quick 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument(
        "--only", choices=["figures", "knees"], help="the paper's figures, or capacities, alone"
    )
    parser.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="FILE[@SCALE]",
        help="seek the capacity for this trace too, beginning about SCALE times its rate; may be repeated",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/paper"), metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Run, and say where the report is."""
    try:
        benchmark = importlib.import_module("benchmarks.paper_report")
    except ModuleNotFoundError as error:
        raise QlmError(
            f"benchmarks: {error}. Benchmarks are part of the repository; run from a checkout."
        ) from None
    seeds = args.seeds or (1 if args.quick else 5)
    if seeds < 1 or args.jobs < 1:
        raise QlmError("--seeds and --jobs must be at least 1")
    if args.trace and args.only == "figures":
        raise QlmError("--trace: the paper's figures are of no trace. Leave it or --only out.")
    report = benchmark.main(
        args.out,
        only=benchmark.PARTS if args.only is None else [args.only],
        traces=args.trace,
        quick=args.quick,
        seeds=seeds,
        jobs=args.jobs,
        progress=_progress,
    )
    print(report)
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
