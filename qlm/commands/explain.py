"""`qlm explain ID`: why a request stands where it stands."""

from __future__ import annotations

import argparse
from typing import Any

from qlm import look
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
    id, phase = known.pop("id"), known.pop("phase", "")
    lines = [f"{id}: {known.pop('state', None) or phase}"]
    because, reason = known.pop("because", ""), known.pop("reason", "")
    lines += [text for text in (because or reason,) if text]
    rows: list[tuple[str, str]] = []
    for key, value in known.items():
        name = key.replace("_", " ")
        if not isinstance(value, list):
            rows.append((name, "" if value is None else _flat(value)))
        else:
            rows += [
                (name if place == 0 else "…", _flat(item)) for place, item in enumerate(value)
            ] or [(name, "none")]
    return [lines[0], *(f"  {line}" for line in (*lines[1:], *look.facts(rows).splitlines()))]


def _flat(value: object) -> str:
    if isinstance(value, dict):
        items = ((key.replace("_", " "), item) for key, item in value.items() if item is not None)
        return ", ".join(f"{name} {_flat(item)}" for name, item in items)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
