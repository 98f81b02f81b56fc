"""`qlm status`: the fleet as the solver sees it, and attainment as the gateway measures it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qlm.commands import options

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_S = 1.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("status", help="show queues, agents and attainment")
    parser.add_argument("--json", action="store_true", help="print the view as JSON")
    parser.add_argument("--watch", action="store_true", help="show it again every second")
    options.add_http(parser)
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Show it once, or until Ctrl-C."""
    import json
    import threading

    from rich.console import Console
    from rich.live import Live

    if args.json:
        print(json.dumps(_view(args), indent=2))
        return 0
    console = Console()
    if not args.watch:
        console.print(_picture(_view(args)))
        return 0
    pause = threading.Event()
    with Live(_picture(_view(args)), console=console, screen=True, auto_refresh=False) as live:
        while not pause.wait(REFRESH_S):
            live.update(_picture(_view(args)), refresh=True)
    return 0


def _view(args: argparse.Namespace) -> dict[str, Any]:
    import json

    from protos.qlm.v1 import client_service_pb2 as pb
    from qlm import dial

    with dial.stub(options.address_of(args)) as stub:
        answer = stub.ViewQueues(
            pb.ViewQueuesRequest(),
            metadata=dial.metadata(options.key_of(args)),
            timeout=dial.CALL_TIMEOUT_S,
        )
    view: dict[str, Any] = json.loads(answer.view_json)
    return view | {"attainment": _attainment(args)}


def _attainment(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Ended requests and the share of them within targets, by class, as the gateway counts."""
    import asyncio

    from qlm import scrape

    found = asyncio.run(scrape.read([f"{options.url_of(args)}/metrics"]))
    shares = {}
    for name in options.config_of(args).slo_classes:
        label = f'slo_class="{name}"'
        ended = scrape.total(found, "qlm_requests_total", label) or 0.0
        dropped = [s for s in found if 'outcome="cancelled"' in s.labels]
        ended -= scrape.total(dropped, "qlm_requests_total", label) or 0.0
        if ended:
            attained = scrape.total(found, "qlm_slo_attained_total", label) or 0.0
            shares[name] = {"ended": ended, "attainment_ratio": attained / ended}
    return shares


def _picture(view: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_agents(view["agents"])]
    if view["unplaced"]:
        groups = ", ".join(_group(group) for group in view["unplaced"])
        parts.append(Text(f"waiting without a queue: {groups}"))
    parts.append(
        Text(f"{view['waiting']} requests wait, {view['held']} are with agents; {_plan(view)}")
    )
    if view["attainment"]:
        shares = (
            f"{name} {100 * one['attainment_ratio']:.1f} % of {one['ended']:.0f}"
            for name, one in view["attainment"].items()
        )
        parts.append(Text(f"attained: {', '.join(shares)}"))
    return Group(*parts)


def _agents(agents: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(title="Agents and their virtual queues", title_justify="left")
    for name in ("agent", "gpu", "model", "state"):
        table.add_column(name)
    for name in ("running", "KV tokens", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("virtual queue: model/class waiting (starts in)")
    for agent in agents:
        table.add_row(
            agent["id"],
            agent["gpu"],
            agent["awake_model"] or "-",
            _state(agent),
            str(agent["running"]),
            f"{agent['kv_used_tokens']:,}",
            f"{agent['tokens_per_s']:,.0f}",
            "\n".join(_group(group) for group in agent["queue"]) or "empty",
        )
    return table


def _state(agent: dict[str, Any]) -> str:
    if not agent["connected"]:
        return "away"
    if agent["swapping_to"]:
        return f"swapping to {agent['swapping_to']}"
    if agent["draining"]:
        return "draining"
    return "ready" if agent["ready"] else "engine down"


def _group(group: dict[str, Any]) -> str:
    start_s = group["starts_in_s"]
    start = "" if start_s is None else f" ({start_s:.1f} s)"
    return f"{group['model']}/{group['slo_class']} {group['waiting']}{start}"


def _plan(view: dict[str, Any]) -> str:
    plan = view["plan"]
    if plan is None:
        return "no plan yet"
    gap = "" if plan["gap"] is None else f", at most {100 * plan['gap']:.1f} % above the optimum"
    return f"plan by {plan['backend']}, {plan['age_s']:.0f} s old{gap}"
