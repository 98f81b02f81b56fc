"""`qlm replay TRACE`: sends the requests of a trace and reports how each class fared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from qlm.load import Bodies
    from qlm.replay import Target
    from qlm_core.sim.workload import WorkloadRequest


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "replay", help="send the requests of a trace and report how they fared"
    )
    parser.add_argument(
        "trace", type=Path, help="CSV or CSV.gz; see docs/operations.md for formats"
    )
    parser.add_argument(
        "--mix",
        help="shares of SLO classes, for rows without one (default: interactive=0.5,batch-1=0.3,"
        "batch-2=0.2 as far as they are configured, else equal ones)",
    )
    parser.add_argument(
        "--models", help="models and their shares (default: the configured ones, evenly)"
    )
    parser.add_argument(
        "--rate-scale", type=float, default=1.0, help="how much denser arrivals come"
    )
    parser.add_argument("--limit", type=int, help="most requests sent")
    parser.add_argument(
        "--time-scale",
        type=float,
        default=1.0,
        help="how much faster the fleet's clock runs (engine.sim.time_scale); "
        "arrivals follow it, and times are reported on it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of class and model")
    parser.add_argument("--transport", choices=("http", "grpc"), default="http")
    parser.add_argument(
        "--as-batch", action="store_true", help="submit all of it as one batch, over HTTP"
    )
    parser.add_argument(
        "--window", default="24h", help="of that batch: 90m, 24h, 7d (default: %(default)s)"
    )
    options.add_http(parser)
    options.add_grpc(parser)
    parser.add_argument("--concurrency-limit", type=int, default=10_000, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=2048, help="the clients' output limit")
    parser.add_argument(
        "--exact-lengths",
        action="store_true",
        help="force output lengths by max_tokens and ignore_eos, for real engines",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw TTFT by class")
    options.add_config(parser)


def _check(args: argparse.Namespace) -> None:
    """Raise QlmError for what would only be noticed when it is too late."""
    from qlm_core.errors import QlmError

    for option, value in (
        ("--limit", args.limit),
        ("--concurrency-limit", args.concurrency_limit),
        ("--max-tokens", args.max_tokens),
    ):
        if value is not None and value < 1:
            raise QlmError(f"{option}: {value} is too low. Give at least 1.")
    for option, value in (("--rate-scale", args.rate_scale), ("--time-scale", args.time_scale)):
        if not 0 < value < float("inf"):
            raise QlmError(
                f"{option}: must be a number above 0, not {value:g}. 2 is twice as fast."
            )
    for option, file in (("--json", args.json), ("--plot", args.plot)):
        if file is not None:
            options.require_writable(file, option)
    if args.as_batch and args.plot is not None:
        raise QlmError("--plot: a batch has no times to first token. Leave it out with --as-batch.")
    if args.plot is not None and args.plot.suffix != ".png":
        raise QlmError(f"--plot: {args.plot} does not end in .png. Give it that ending.")


def run(args: argparse.Namespace) -> int:
    """Replay, report; status 1 when a request was lost. Raises KeyboardInterrupt after a partial report."""
    import asyncio

    import uvloop
    from rich.console import Console

    from qlm import load, render, replay, report
    from qlm.traces import default_mix, read_requests
    from qlm_core.errors import QlmError
    from qlm_core.sim.workload import Mix, TraceMapping

    _check(args)
    config = options.config_of(args)
    slos = replay.slos_of(config)
    mapping = TraceMapping(
        mix=Mix.parse(args.mix) if args.mix else default_mix(slos),
        models=Mix.parse(args.models or ",".join(f"{name}=1" for name in config.models)),
        rename=args.models is not None,
        rate_scale=args.rate_scale,
        limit=args.limit,
        max_tokens=args.max_tokens,
        seed=args.seed,
    )
    for name in mapping.mix.names:
        if name not in slos:
            raise QlmError(f"--mix: {name!r} is no SLO class. Use some of {', '.join(slos)}.")
    url = options.url_of(args)
    target = replay.Target(
        url=url,
        grpc_address=options.address_of(args),
        transport=args.transport,
        api_key=options.key_of(args),
        ca=options.ca_of(args),
        metrics_urls=replay.metrics_urls(config, url),
    )
    bodies = load.Bodies(
        exact_lengths=args.exact_lengths,
        model_len={name: model.max_model_len for name, model in config.models.items()},
    )
    requests = list(read_requests(args.trace, mapping))
    if not requests:
        raise QlmError(f"{args.trace}: no request in it. Give a trace with at least one row.")
    if args.as_batch:
        return _as_batch(args, requests, bodies, target)

    async def measured() -> tuple[report.Report, list[report.Outcome]]:
        with replay.told_to_stop() as stop:
            return await replay.measured(
                requests,
                target,
                slos=slos,
                bodies=bodies,
                time_scale=args.time_scale,
                concurrency_limit=args.concurrency_limit,
                stop=stop,
            )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result, outcomes = runner.run(measured())
    render.print_report(result, slos, Console())
    if args.json:
        args.json.write_bytes(report.to_json(result))
    if args.plot:
        render.plot(
            outcomes, slos, args.plot, title=f"{args.trace.name}, {result.requests} requests"
        )
    if result.interrupted is not None:
        raise KeyboardInterrupt
    return 1 if result.fates["lost"] else 0


def _as_batch(
    args: argparse.Namespace,
    requests: list[WorkloadRequest],
    bodies: Bodies,
    target: Target,
) -> int:
    """Run it as a batch and report; status 1 unless every line was answered."""
    import asyncio

    import msgspec

    from qlm import batch_replay
    from qlm.batch_client import BatchClient

    async def submitted() -> batch_replay.BatchReport:
        async with BatchClient(target.url, api_key=target.api_key, ca=target.ca) as client:
            return await batch_replay.run(requests, client, bodies=bodies, window=args.window)

    result = asyncio.run(submitted())
    print(batch_replay.shown(result))
    if args.json:
        args.json.write_bytes(msgspec.json.encode(result))
    return 0 if result.lines and result.completed == result.lines else 1
