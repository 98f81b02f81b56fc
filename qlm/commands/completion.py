"""`qlm completion SHELL`: prints a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print what makes a shell complete `qlm` commands",
        description="Print a script for a shell. For bash: qlm completion bash > ~/.local/share/bash-completion/completions/qlm",
    )
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    import shtab

    from qlm.__main__ import whole_parser

    print(shtab.complete(whole_parser(), args.shell))
    return 0
