"""`qlm status`: the fleet as the solver sees it, and attainment as the gateway measures it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qlm import look
from qlm.commands import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qlm.scrape import Sample

REFRESH_S = 1.0
GROUPS_SHOWN_MAX = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("status", help="show queues, agents and attainment")
    parser.add_argument("--json", action="store_true", help="print the view as JSON")
    parser.add_argument(
        "--capacity",
        action="store_true",
        help="show how many instances each GPU needs, and what one more would save",
    )
    parser.add_argument("--watch", action="store_true", help="show it again every second")
    options.add_http(parser)
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Show it once, or until Ctrl-C."""
    import json
    import threading

    from rich.live import Live

    if args.json:
        print(json.dumps(_view(args), indent=2))
        return 0
    console = look.console()
    if args.capacity:
        view = _view(args)
        console.print(_needed(view.get("advice", [])), _capacity(view.get("plan")))
        return 0
    if not args.watch:
        console.print(_picture(_view(args)))
        return 0
    pause = threading.Event()
    with Live(_picture(_view(args)), console=console, screen=True, auto_refresh=False) as live:
        while not pause.wait(REFRESH_S):
            live.update(_picture(_view(args)), refresh=True)
    return 0


def _view(args: argparse.Namespace) -> dict[str, Any]:
    with options.client_of(args) as client:
        return client.queues() | _counted(args)


def _counted(args: argparse.Namespace) -> dict[str, Any]:
    """What the gateway and, where it can be reached, the solver count."""
    import asyncio

    from qlm import scrape

    config = options.config_of(args)
    urls = [f"{options.url_of(args)}/metrics"]
    if config.solver.metrics_listen:
        urls.append(f"http://{config.solver.metrics_listen}/metrics")
    found = asyncio.run(scrape.read(urls, api_key=options.key_of(args), ca=options.ca_of(args)))
    return {
        "attainment": _attainment(found, config.slo_classes),
        "solves": scrape.by_label(found, "qlm_solves_total", "backend"),
        "step_downs": scrape.by_label(found, "qlm_backend_step_downs_total", "backend"),
    }


def _attainment(found: list[Sample], classes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Ended requests and the share of them within targets, by class."""
    from qlm import scrape

    shares = {}
    for name in classes:
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
    from rich.table import Table
    from rich.text import Text

    agents = sorted(view["agents"], key=lambda agent: agent["id"])
    parts: list[RenderableType] = [_agents(agents)]
    queues = {agent["id"]: agent["queue"] for agent in agents if agent["queue"]}
    if view.get("unplaced"):
        queues["(none)"] = view["unplaced"]
    if view.get("yours"):
        # With the key of a tenant: its own requests, wherever they stand.
        queues["(yours)"] = view["yours"]
    if queues:
        parts.append(_queues(queues))
    if view.get("batches"):
        parts.append(_batches(view["batches"]))
    groups = sum(len(queue) for queue in queues.values())
    lines = {
        "requests": f"{view['waiting']} wait in {groups} groups, {view['held']} are with agents",
        "batches": _lines(view),
        "plan": _plan(view["plan"]) if "plan" in view else "",
        "planner": _planner(view["planner"], view["solves"]) if "planner" in view else "",
        "fell back": ", ".join(
            f"from {one} {n:.0f} {'time' if n == 1 else 'times'} (the solver's log says why)"
            for one, n in view["step_downs"].items()
        ),
        "attained": ", ".join(
            f"{name} {100 * one['attainment_ratio']:.1f} % of {one['ended']:.0f}"
            for name, one in view["attainment"].items()
        ),
    }
    summary = Table.grid(padding=(0, 1))
    for name, text in lines.items():
        if text:
            summary.add_row(name, Text(text))
    return Group(*parts, summary)


def _needed(advice: list[dict[str, Any]]) -> RenderableType:
    table = look.table(
        "gpu",
        right=("instances", "busy", "needed"),
        title="Instances that keep targets, the other GPUs as they are",
    )
    for one in advice:
        table.add_row(one["gpu"], str(one["instances"]), f"{one['busy']:.1f}", str(one["needed"]))
    return table


def _capacity(plan: dict[str, Any] | None) -> RenderableType:
    from rich.text import Text

    if plan is None or not plan["capacity"]:
        return Text("no bound yet: capacity is priced with it, every solver.replan.bound_period_s")
    table = look.table(
        "gpu",
        right=("instances", "weighted late requests", "objective"),
        title=f"What one more instance would save at most, {plan['bound_age_s']:.0f} s ago",
    )
    for one in plan["capacity"]:
        table.add_row(
            one["gpu"],
            str(one["instances"]),
            f"{one['saves_late_weight']:,.1f}",
            f"{one['saves_cost']:,.1f}",
        )
    return table


def _agents(agents: list[dict[str, Any]]) -> RenderableType:
    table = look.table(
        *("agent", "gpu", "model", "state"), right=("running", "KV tokens", "tokens/s")
    )
    for agent in agents:
        table.add_row(
            agent["id"],
            agent["gpu"],
            f"→ {agent['swapping_to']}" if agent["swapping_to"] else agent["awake_model"] or "-",
            _state(agent),
            str(agent["running"]),
            f"{agent['kv_used_tokens']:,}" if "kv_used_tokens" in agent else "-",
            f"{agent['tokens_per_s']:,.0f}" if "tokens_per_s" in agent else "-",
        )
    return table


def _queues(queues: dict[str, list[dict[str, Any]]]) -> RenderableType:
    """The groups of each virtual queue, in order; of a long one only the first."""
    table = look.table(
        *("queue", "model", "class"), right=("group", "waiting", "running", "starts in s")
    )
    for name, queue in queues.items():
        for place, group in enumerate(queue[:GROUPS_SHOWN_MAX]):
            start_s = group.get("starts_in_s")
            table.add_row(
                "" if place else name,
                group["model"],
                group["slo_class"],
                str(group.get("group", "-")),
                str(group["waiting"]),
                str(group["held"]),
                "-" if start_s is None else f"{start_s:.1f}",
            )
        rest = queue[GROUPS_SHOWN_MAX:]
        if rest:
            waiting = sum(group["waiting"] for group in rest)
            table.add_row("", f"and {len(rest)} more", "", "", str(waiting), "", "")
    return table


def _batches(batches: list[dict[str, Any]]) -> RenderableType:
    """The batches that are not over; of many only those that are due first."""
    right = ("left", "ended", "due in", "p50", "p90", "in time")
    table = look.table("batch", right=right)
    # Whoever looks at a batch next needs its whole id.
    table.columns[0].no_wrap = True
    for one in batches[:GROUPS_SHOWN_MAX]:
        models = one["models"]
        table.add_row(
            one["batch"],
            str(sum(part["waiting_lines"] + part["waiting"] + part["held"] for part in models)),
            str(sum(part["ended"] for part in models)),
            _in(one["due_in_s"]),
            _in(one["finish_p50_s"]),
            _in(one["finish_p90_s"]),
            {True: "yes", False: "no"}.get(one["feasible"], "-"),
        )
    if batches[GROUPS_SHOWN_MAX:]:
        table.add_row(f"and {len(batches) - GROUPS_SHOWN_MAX} more", *[""] * len(right))
    return table


def _in(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = seconds / 60.0
    return f"{seconds:.0f} s" if abs(minutes) < 2.0 else f"{minutes:,.0f} min"


def _lines(view: dict[str, Any]) -> str:
    lines = view.get("waiting_lines")
    if not view.get("batches"):
        return ""
    return f"{lines:,} lines of {len(view['batches'])} batches wait to become requests"


def _state(agent: dict[str, Any]) -> str:
    if not agent["connected"]:
        return "away"
    if agent["swapping_to"]:
        return "swapping"
    if agent["draining"]:
        return "draining"
    return "ready" if agent["ready"] else "engine down"


def _plan(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "none yet"
    text = f"by {plan['backend']}, {plan['age_s']:.0f} s old, objective {plan['objective']:.4g}"
    if plan["gap"] is None:
        return f"{text}, no bound known"
    return f"{text}, gap {100 * plan['gap']:.1f} % to a bound {plan['bound_age_s']:.0f} s old"


def _planner(planner: dict[str, Any], solves: dict[str, float]) -> str:
    by = ", ".join(f"{name} {count:.0f}" for name, count in solves.items())
    return (
        f"{planner['solves']} solves{f' ({by})' if by else ''}, {planner['adopted']} adopted; "
        f"{planner['repairs']} repairs"
    )
