"""`qlm explain ID`: why a request stands where it stands."""

from __future__ import annotations

import argparse
from typing import Any

from qlm.commands import options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("explain", help="explain where a request stands and why")
    parser.add_argument("id", help="the request, as `qlm submit` or the API named it")
    parser.add_argument("--json", action="store_true", help="print the whole explanation")
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    import json

    with options.client_of(args) as client:
        explanation = client.explain(args.id)
    if args.json:
        print(json.dumps(explanation, indent=2))
        return 0
    for line in lines_of(explanation):
        print(line)
    return 0


def lines_of(explanation: dict[str, Any]) -> list[str]:
    """An explanation in words: first where the request stands and why, then the figures behind it."""
    known = dict(explanation)
    id, state = known.pop("id"), known.pop("state", None) or known.pop("phase", "")
    lines = [f"{id}: {state}"]
    for key in ("because", "reason"):
        if known.get(key):
            lines.append(f"  {known.pop(key)}")
    for key, value in known.items():
        name = key.replace("_", " ")
        if isinstance(value, list):
            lines.append(f"  {name}: {'' if value else 'none'}".rstrip())
            lines += [f"    {_flat(item)}" for item in value]
        elif value is not None and value != "":
            lines.append(f"  {name}: {_flat(value)}")
    return lines


def _flat(value: object) -> str:
    if isinstance(value, dict):
        items = ((key.replace("_", " "), item) for key, item in value.items() if item is not None)
        return ", ".join(f"{name} {_flat(item)}" for name, item in items)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
