"""`qlm bench planner`: gaps, bounds, repairs and build times by size, backend and budget."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from qlm_core.errors import QlmError


def add_parser(subparsers: Any) -> None:
    """Add `planner` to the subjects of `qlm bench`."""
    parser = subparsers.add_parser("planner", help="plans, bounds and repairs on problem files")
    parser.add_argument(
        "--instances", type=Path, metavar="FOLDER", help="default ../shared/instances"
    )
    parser.add_argument("--sizes", default="", help="such as n8g2,n100g10; default all")
    parser.add_argument("--backends", default="", help="such as auto,search; default all installed")
    parser.add_argument("--budgets", default="0.05,0.2,1", metavar="SECONDS,...")
    parser.add_argument("--most", type=int, default=5, help="instances of each size")
    parser.add_argument("--huge", action="store_true", help="also 10,000 groups on 1,000 queues")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count budgets in seconds of CPU, in this process (on machines that are shared)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--results", type=Path, metavar="FILE.ndjson", help="append results here")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, append JSON lines."""
    try:
        benchmark = importlib.import_module("benchmarks.planner")
    except ModuleNotFoundError as error:
        raise QlmError(
            f"benchmarks: {error}. Benchmarks are part of the repository; run from a checkout."
        ) from None
    arguments = {
        "folder": args.instances or benchmark.INSTANCES,
        "sizes": _words(args.sizes) or benchmark.SIZES,
        "backends": _words(args.backends),
        "budgets": _seconds(args.budgets),
        "most": args.most,
        "huge": args.huge,
        "cpu_time": args.cpu_time,
    }
    status: int = benchmark.main(arguments, args.plot, args.results or benchmark.RESULTS)
    return status


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _seconds(text: str) -> tuple[float, ...]:
    try:
        budgets = tuple(float(word) for word in _words(text))
    except ValueError:
        raise QlmError(f"--budgets: must be numbers of seconds, is {text!r}") from None
    if not budgets or min(budgets) <= 0:
        raise QlmError(f"--budgets: must be above 0 seconds, is {text!r}")
    return budgets
