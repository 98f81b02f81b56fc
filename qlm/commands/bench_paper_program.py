"""`qlm bench paper-program`: what `qlm-paper` makes of the paper's program, beside a MILP solver."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from qlm_core.errors import QlmError


def add_parser(subparsers: Any) -> None:
    """Add `paper-program` to the subjects of `qlm bench`."""
    parser = subparsers.add_parser(
        "paper-program", help="the paper's program: the search of qlm-paper beside HiGHS"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each bed to take them from")
    parser.add_argument("--most", type=int, default=12, help="programs of each bed to solve")
    parser.add_argument("--seconds", type=float, default=2.0, help="that HiGHS has for each")


def run(args: argparse.Namespace) -> int:
    """Measure and print two tables."""
    try:
        benchmark = importlib.import_module("benchmarks.paper_program")
    except ModuleNotFoundError as error:
        raise QlmError(
            f"benchmarks: {error}. Benchmarks are part of the repository; run from a checkout."
        ) from None
    if args.seeds < 1 or args.most < 1 or args.seconds <= 0:
        raise QlmError("--seeds and --most must be at least 1, --seconds above 0")
    print(benchmark.main(seeds=args.seeds, most=args.most, limit_s=args.seconds, say=_progress))
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
