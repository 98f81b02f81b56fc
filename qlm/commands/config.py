"""`qlm config check` and `qlm config show`."""

from __future__ import annotations

import argparse
import sys

from qlm.commands import options

MISSING_SHOWN_MAX = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("config", help="check or show the configuration")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check a configuration file")
    check.add_argument("file", nargs="?", help="the file (default: as for --config)")
    options.add_config(check)
    actions.add_parser(
        "example", help="print the configuration with all keys, defaults and comments"
    )
    show = actions.add_parser("show", help="print the effective configuration, secrets masked")
    show.add_argument("--defaults", action="store_true", help="print the built-in defaults")
    show.add_argument(
        "--full", action="store_true", help="with every address, and every agent in full"
    )
    options.add_config(show)


def run(args: argparse.Namespace) -> int:
    """Carry it out."""
    from qlm import config_file, tls_files
    from qlm_core.config import Config
    from qlm_core.config_doors import open_doors
    from qlm_core.config_reach import findings, unserved

    if args.action == "example":
        print(config_file.example(), end="")
        return 0
    if args.action == "show":
        config = Config() if args.defaults else options.config_of(args)
        print(
            config_file.to_yaml(config) if args.full else config_file.to_short_yaml(config), end=""
        )
        return 0
    args.config = args.file or args.config
    config = options.config_of(args)
    classes, models = ", ".join(config.slo_classes), ", ".join(config.models)
    agents = ", ".join(agent.name for agent in config.agents) or "none"
    missing = tls_files.missing(config)
    problems = list(findings(config, config_file.said(args.config, args.overrides)))
    for problem in problems:
        print(f"qlm: error: {problem}", file=sys.stderr)
    if problems:
        return 2
    print(f"valid: models {models}; classes {classes}; agents {agents}")
    if lost := unserved(config):
        print(f"served by no agent, so that requests for it would wait: {', '.join(lost)}")
    for door in open_doors(config):
        print(f"open, as insecure: true has it: {door.key} {door.address}")
    if missing:
        more = len(missing) - MISSING_SHOWN_MAX
        shown = ", ".join(missing[:MISSING_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        print(f"not on this host, and needed where their parts run: {shown}")
    return 0
