"""`qlm demo`: a fleet of simulated GPUs of its own, a minute of mixed requests, the report, and the same minute without QLM.

Everything is temporary: free ports, a store in a temporary folder, processes that end with the command.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from qlm.replay import Target
    from qlm.report import Outcome, Report
    from qlm_core.config import Config
    from qlm_core.sim.workload import WorkloadRequest

ARRIVALS_S = 60.0
SECONDS_MAX = 3600.0
SEED = 7
PICTURES = (".png", ".svg", ".pdf")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "demo", help="show the whole system at work for about a minute, beside a plain fleet"
    )
    parser.add_argument("--backend", default="auto", help="solver backend (default: %(default)s)")
    parser.add_argument("--transport", choices=("http", "grpc"), default="grpc")
    parser.add_argument(
        "--seconds", type=float, default=ARRIVALS_S, help="how long requests arrive"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw both fleets here (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Start, send, report; status 1 when a request was lost. Raises KeyboardInterrupt after a partial report."""
    import asyncio
    import tempfile

    import uvloop
    from rich.console import Console

    from qlm import fleet, render, replay
    from qlm.outputs import require_place
    from qlm_core.errors import QlmError

    if not 0 < args.seconds <= SECONDS_MAX:
        raise QlmError(f"--seconds: {args.seconds:g} is not between 0 and {SECONDS_MAX:g}.")
    require_place("--plot", args.plot)
    if args.plot and Path(args.plot).suffix not in PICTURES:
        raise QlmError(f"--plot: {args.plot}: give a name that ends in {', '.join(PICTURES)}.")
    with tempfile.TemporaryDirectory(prefix="qlm-demo-") as name:
        folder = Path(name)
        config = fleet.temporary_config(folder, [f"solver.backend={args.backend}"])
        requests = workload(args.seconds)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report, outcomes = runner.run(_demonstrate(config, folder, args.transport, requests))
        console = Console()
        console.print()
        render.print_report(report, replay.slos_of(config), console)
        if report.interrupted is None:
            _compare(config, requests, report, outcomes, console, args.plot)
    if report.interrupted is not None:
        raise KeyboardInterrupt
    return 1 if report.fates["lost"] else 0


def workload(seconds: float) -> list[WorkloadRequest]:
    """A mixed workload that keeps three GPUs busy: chats, urgent batches and a night's batch."""
    from qlm_core.sim.workload import Mix, Stream, generate

    both = Mix((("mistral-7b", 0.6), ("vicuna-13b", 0.4)))
    rates = (("interactive", 8.0), ("batch-1", 7.0), ("batch-2", 13.0))
    streams = [
        Stream(
            slo_class=name,
            models=both,
            rate_rps=rate_rps,
            cv=2.0 if name == "interactive" else 1.0,
            until_s=seconds,
            max_tokens=512,
        )
        for name, rate_rps in rates
    ]
    return list(generate(streams, seed=SEED))


async def _demonstrate(
    config: Config, folder: Path, transport: str, requests: list[WorkloadRequest]
) -> tuple[Report, list[Outcome]]:
    from qlm import fleet, load, replay

    url = f"http://{config.gateway.http_listen}"
    target = replay.Target(
        url=url,
        grpc_address=config.gateway.grpc_listen,
        transport=transport,
        metrics_urls=replay.metrics_urls(config, url),
    )
    bodies = load.Bodies(
        model_len={name: model.max_model_len for name, model in config.models.items()}
    )
    print("Starting a solver, a gateway and three agents with simulated GPUs ...", flush=True)
    async with fleet.running(config, folder):
        _introduce(config, target, requests)
        with replay.told_to_stop() as stop:
            return await replay.measured(
                requests, target, slos=replay.slos_of(config), bodies=bodies, stop=stop
            )


def _compare(
    config: Config,
    requests: list[WorkloadRequest],
    report: Report,
    outcomes: list[Outcome],
    console: Console,
    picture: str | None,
) -> None:
    """Show the run beside the same requests on the same GPUs, first come, first served."""
    from qlm import plain_fleet, replay, side_by_side

    slos = replay.slos_of(config)
    plain_report, plain_outcomes = plain_fleet.served_in_turn(config, requests, seed=SEED)
    plain = side_by_side.Side(name="FCFS", report=plain_report, outcomes=plain_outcomes)
    ours = side_by_side.Side(name="QLM", report=report, outcomes=outcomes)
    console.print()
    console.print(
        "The same requests on the same GPUs, first come, first served (simulated), and with QLM."
    )
    console.print("Waits are for the first token; red: beyond the target.")
    console.print(side_by_side.chart((plain, ours), slos))
    for sentence in side_by_side.sentences(plain, ours, slos):
        console.print(sentence, highlight=False)
    if picture:
        side_by_side.draw((plain, ours), slos, Path(picture))
        console.print(f"Drawn in {picture}.", highlight=False, markup=False, soft_wrap=True)


def _introduce(config: Config, target: Target, requests: list[WorkloadRequest]) -> None:
    for agent in config.agents:
        print(f"  {agent.name:<8} {agent.gpu:<5} serves {', '.join(agent.models)}")
    print(f"  OpenAI-compatible at {target.url}/v1, gRPC at {target.grpc_address}")
    last_s = requests[-1].arrival_s if requests else 0.0
    print(
        f"Sending {len(requests)} requests of three SLO classes within {last_s:.0f} s", flush=True
    )
