"""`qlm bench`: measurements of the data plane, slots, the core, the planner and the simulator, each figure beside its target."""

from __future__ import annotations

import argparse
import importlib
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    from qlm.commands import (
        bench_finish,
        bench_paper,
        bench_paper_program,
        bench_planner,
        bench_regret,
        bench_rules,
    )

    parser = subparsers.add_parser(
        "bench", help="measure the data plane, the core, the planner or the simulator"
    )
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    dataplane = subjects.add_parser("dataplane", help="requests and tokens through all processes")
    dataplane.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    core = subjects.add_parser("core", help="arrivals, memory, the first plan, imports")
    simulator = subjects.add_parser("simulator", help="simulated requests by time and memory")
    simulator.add_argument("--requests", type=int, default=1_000_000, help="of the long trace")
    decisions = subjects.add_parser(
        "decisions", help="attainment in the simulator and on the real service"
    )
    decisions.add_argument("--seeds", type=int, default=1, help="a minute or three each")
    slots = subjects.add_parser("slots", help="urgent requests beside work that fills all slots")
    slots.add_argument("--quick", action="store_true", help="a quarter of the load: two minutes")
    slots.add_argument("--repetitions", type=int, default=1, help="seven minutes each")
    slots.add_argument("--ttft-s", type=float, default=1.0, help="what chats are promised")
    for subject in (dataplane, core, simulator, decisions, slots):
        subject.add_argument("--json", action="store_true", help="print one JSON object")
    bench_planner.add_parser(subjects)
    bench_paper.add_parser(subjects)
    bench_paper_program.add_parser(subjects)
    bench_regret.add_parser(subjects)
    bench_finish.add_parser(subjects)
    bench_rules.add_parser(subjects)


def run(args: argparse.Namespace) -> int:
    """Measure and print; status 1 when a target is missed."""
    if args.subject == "planner":
        from qlm.commands import bench_planner

        return bench_planner.run(args)
    if args.subject == "paper":
        from qlm.commands import bench_paper

        return bench_paper.run(args)
    if args.subject == "paper-program":
        from qlm.commands import bench_paper_program

        return bench_paper_program.run(args)
    if args.subject == "regret":
        from qlm.commands import bench_regret

        return bench_regret.run(args)
    if args.subject == "finish":
        from qlm.commands import bench_finish

        return bench_finish.run(args)
    if args.subject == "rules":
        from qlm.commands import bench_rules

        return bench_rules.run(args)
    subject, figures = _of_checkout(args.subject), _of_checkout("figures")
    known = ("seconds", "requests", "seeds", "quick", "repetitions", "ttft_s")
    measured = subject.measure(
        **{name: value for name, value in vars(args).items() if name in known}
    )
    print(figures.to_json(measured) if args.json else figures.show(measured))
    return 1 if any(figure.met is False for figure in measured) else 0


def _of_checkout(name: str) -> Any:
    from qlm_core.errors import QlmError

    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        raise QlmError(
            f"benchmarks: {error}. Benchmarks are part of the repository; run from a checkout."
        ) from None
