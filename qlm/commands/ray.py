"""`qlm ray up`, `status` and `down`: agents on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from qlm.commands import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qlm.ray_fleet import RayFleet, Standing
    from qlm.ray_plan import Placement

NODES_SHOWN_MAX = 16


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "ray", help="place agents on a Ray cluster by GPU class, and keep them running there"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser(
        "up", help="place the agents of a configuration; replace what has changed, remove the rest"
    )
    up.add_argument("file", nargs="?", help="the configuration (default: as for --config)")
    options.add_config(up)
    up.add_argument(
        "--wait",
        type=float,
        metavar="S",
        help="how long to wait until all have joined (default: as long as their engines may take to start)",
    )
    status = actions.add_parser("status", help="show where agents run, and how they are")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    down = actions.add_parser("down", help="drain and remove agents")
    down.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="NAME",
        help="this one; may be repeated (default: all)",
    )
    for action in (up, status, down):
        action.add_argument(
            "--address",
            default="auto",
            help="of the cluster: HOST:PORT, ray://HOST:PORT or auto, this machine's (default: $RAY_ADDRESS, else auto)",
        )
        action.add_argument(
            "--namespace",
            default="qlm",
            help="of the fleet in the cluster: each fleet has its own (default: %(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Carry it out."""
    from qlm import ray_fleet

    # While Ray is there, standard output is its own.
    out = sys.stdout
    if args.action == "up":
        return _up(args, out)
    with ray_fleet.connected(args.address, args.namespace) as fleet:
        if args.action == "down":
            return _down(fleet, args.agent, out)
        _show(list(fleet.standings().values()), out, as_json=args.json)
    return 0


def _up(args: argparse.Namespace, out: TextIO) -> int:
    from math import inf

    from qlm import config_file, ray_fleet, ray_plan
    from qlm.fleet import ready_timeout_s
    from qlm_core.errors import QlmError

    config = config_file.unexpanded(args.file or args.config, args.overrides)
    wanted = ray_plan.placements(config)
    elsewhere = [agent.name for agent in config.agents if agent.host]
    wait_s = ready_timeout_s(config) if args.wait is None else args.wait
    if not 0 <= wait_s < inf:
        raise QlmError("--wait: give seconds, 0 or more.")

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    with ray_fleet.connected(args.address, args.namespace) as fleet:
        ray_plan.check_reach(config, [node.address for node in fleet.nodes()])
        if elsewhere:
            say(f"left to `qlm agent --host`: {', '.join(elsewhere)}")
        ray_fleet.bring_up(fleet, wanted, say=say)
        found = ray_fleet.until_joined(fleet, [one.name for one in wanted], wait_s)
        pairs = [(one, _named(found, one)) for one in wanted]
        _show([stands for _, stands in pairs], out, as_json=False)
        late = [(one, stands) for one, stands in pairs if stands.state != "joined"]
        for one, stands in late:
            say(_reason(one, stands))
        if any(stands.state == "waiting" for _, stands in late):
            for line in _has(fleet):
                say(line)
    return 1 if late else 0


def _named(found: dict[str, Standing], wanted: Placement) -> Standing:
    """How an agent stands; one that waits cannot tell what it is for."""
    from dataclasses import replace

    from qlm.ray_fleet import Standing

    return replace(found.get(wanted.name, Standing(agent=wanted.name)), gpu=wanted.gpu)


def _reason(wanted: Placement, standing: Standing) -> str:
    """Why it has not joined."""
    if standing.state == "failed" and not standing.address:
        return f"{wanted.name} cannot be made: {standing.why}. The nodes need the same qlm-serving as this machine."
    if standing.state == "failed":
        return f"{wanted.name} has failed on {standing.address}, and is placed anew: {standing.why}"
    if standing.state == "waiting":
        return f"{wanted.name} waits for a place: it asks for {wanted.ask}"
    if standing.state == "ready":
        return f"{wanted.name} runs on {standing.address} and has not reached solver and gateway"
    return f"{wanted.name} is {standing.state} on {standing.address}"


def _has(fleet: RayFleet) -> Iterator[str]:
    """What the cluster has."""
    nodes = fleet.nodes()
    for node in nodes[:NODES_SHOWN_MAX]:
        yield f"the cluster has {node}"
    if len(nodes) > NODES_SHOWN_MAX:
        yield f"and {len(nodes) - NODES_SHOWN_MAX} nodes more"
    yield f"of that is free: {fleet.free()}"


def _down(fleet: RayFleet, names: Sequence[str], out: TextIO) -> int:
    from qlm.ray_fleet import PATIENCE_S
    from qlm_core.errors import QlmError
    from qlm_core.nearest import did_you_mean

    found = fleet.standings(patience_s=PATIENCE_S)
    for name in names:
        if name not in found:
            known = ", ".join(found) or "none"
            raise QlmError(
                f"--agent: Ray runs no agent {name!r}; it runs {known}.{did_you_mean(name, found)}"
            )
    leaving = [one for name, one in found.items() if not names or name in names]
    if not leaving:
        print("no agents are there", file=out)
        return 0
    print(f"drains and removes: {', '.join(one.agent for one in leaving)}", file=out, flush=True)
    fleet.remove(leaving)
    return 0


def _show(standings: Collection[Standing], out: TextIO, *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from qlm import look

    if as_json:
        print(json.dumps([asdict(one) for one in standings], indent=2), file=out)
    else:
        look.console(out).print(_table(standings))


def _table(standings: Collection[Standing]) -> RenderableType:
    from qlm import look

    table = look.table("agent", "gpu", "node", "state", right=("restarts",))
    for one in standings:
        node = f"{one.address} ({one.node_id[:8]})" if one.address else "-"
        table.add_row(one.agent, one.gpu or "-", node, one.state, str(one.restarts))
    return table
