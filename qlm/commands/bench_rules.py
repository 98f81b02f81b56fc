"""`qlm bench rules`: what each rule of thumb is worth, by taking it out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from qlm_core.errors import ConfigError

BEDS = 16
REQUESTS = 400


def add_parser(subparsers: Any) -> None:
    """Add `rules` to the subjects of `qlm bench`."""
    parser = subparsers.add_parser(
        "rules", help="takes out each rule of thumb in turn: what it is worth on random beds"
    )
    parser.add_argument("--beds", type=int, default=BEDS, metavar="N", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="that the beds are drawn from")
    parser.add_argument("--rule", default="", metavar="NAME,...", help="these alone (default: all)")
    parser.add_argument(
        "--requests",
        type=int,
        default=REQUESTS,
        metavar="N",
        help="beds end after so many (default %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--add", type=Path, metavar="FILE", help="count the beds of an earlier run as well"
    )
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write docs/rules.md")


def run(args: argparse.Namespace) -> int:
    """Run everything and print the table; 0 whatever is found."""
    from qlm.outputs import require_place
    from qlm.rules import RULES, rule_named, runs, worth

    for option, least in (("beds", 2), ("requests", 1), ("jobs", 1), ("seed", 0)):
        if (value := getattr(args, option)) < least:
            raise ConfigError(f"--{option}: {value}. Give at least {least}.")
    for option in ("json", "page"):
        file = getattr(args, option)
        require_place(f"--{option}", None if file is None else str(file))
    names = [word.strip() for word in args.rule.split(",") if word.strip()]
    # No batches come on these beds: rules of theirs would be run for nothing.
    everywhere = [rule for rule in RULES if rule.part != "batches"]
    rules = [rule_named(name) for name in dict.fromkeys(names)] or everywhere
    earlier = {} if args.add is None else runs.from_json(_read(args.add), str(args.add))
    pairs = runs.measure(
        rules,
        seed=args.seed,
        beds=args.beds,
        requests=args.requests,
        jobs=args.jobs,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
    )
    pairs = runs.together(earlier, pairs)
    if args.json is not None:
        args.json.write_text(runs.to_json(pairs) + "\n", encoding="utf-8")
    if args.page is not None:
        args.page.write_text(worth.page(pairs), encoding="utf-8")
    print(worth.report(worth.worths(pairs)))
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--add: {path}: {error.strerror}. Name a file that can be read."
        ) from None
