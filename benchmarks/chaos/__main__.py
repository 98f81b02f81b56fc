"""`python -m benchmarks.chaos`: every fault to a fleet of its own, and a table; status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.faults import ENGINE_WHOLE_S, WHOLE_S, Fault, catalogue
from benchmarks.chaos.run import Row, run

# Starting, settling and stopping, beside what a fault takes itself.
_AROUND_S = 11.0


def main() -> int:
    """Run what the command line names."""
    args = _arguments()
    chosen = _chosen(args.only, quick=args.quick)
    if not chosen:
        print(f"no fault is called like {args.only!r}; --list shows them", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    minutes = sum(fault.seconds + _AROUND_S for fault in chosen) / 60
    print(f"{len(chosen)} faults, about {minutes:.0f} minutes", flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = [row for fault in chosen for row in runner.run(_repeated(fault, args))]
    _print_table(rows)
    if args.json:
        Path(args.json).write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    return 0 if all(row.verdict == "ok" for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="NAME", help="faults whose names contain it; a pattern"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few faults of each sort, in under five minutes"
    )
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="each fault so often")
    parser.add_argument(
        "--keep", metavar="FOLDER", help="keep logs, store and the engines' log there"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    return parser.parse_args()


def _chosen(only: str, *, quick: bool) -> list[Fault]:
    faults = [fault for fault in catalogue() if fault.quick or not quick]
    return [fault for fault in faults if re.search(only, fault.name)]


async def _repeated(fault: Fault, args: argparse.Namespace) -> list[Row]:
    rows = []
    for number in range(args.repeat):
        folder = None
        if args.keep:
            folder = Path(args.keep) / f"{fault.name.replace(' ', '-')}-{number}"
        row = await run(fault, folder)
        print(f"{row.verdict:<10} {fault.name}", flush=True)
        for note in row.notes:
            print(f"           {note}", flush=True)
        rows.append(row)
    return rows


def _print_table(rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault")
    for column in (
        *("requests", "finished", "failed", "lost", "duplicated", "wrong text", "hung"),
        *("longest silence s", "recovery s", "verdict"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        counts = (row.requests, row.finished, row.failed, row.lost, row.duplicated, row.wrong)
        table.add_row(
            row.fault,
            *map(str, (*counts, row.hung)),
            f"{row.silence_s:.1f}",
            "never" if row.recovery_s is None else f"{row.recovery_s:.2f}",
            row.verdict,
        )
    Console(width=140).print(table)
    print(
        "Each durable request must have one recorded end and the exact text, and service must be whole "
        f"{WHOLE_S:g} s after a fault is healed,\n{ENGINE_WHOLE_S:g} s after one of an engine. "
        "`failed` counts requests without a key whose gateway or connection died."
    )


if __name__ == "__main__":
    sys.exit(main())
