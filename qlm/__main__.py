"""The `qlm` command: finds the command's module, runs it, and turns errors into one line and an exit status.

Only the module of the command that is asked for is imported, so that `qlm --help` is instant.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from qlm import overwritten
from qlm_core.errors import QlmError
from qlm_core.nearest import did_you_mean

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
# What is wrong with a place to write to, which a traceback would explain no better.
_UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)

COMMANDS = {
    "up": "start solver, gateway and agents on this machine",
    "demo": "show the whole system at work for about a minute, beside a plain fleet",
    "solver": "run the solver",
    "gateway": "run a gateway",
    "agent": "run one agent",
    "ray": "place agents on a Ray cluster by GPU class, and keep them running there",
    "submit": "send one request and print its answer",
    "batch": "submit, watch, fetch and cancel batches",
    "replay": "send the requests of a trace and report how they fared",
    "watch": "print the answer of a request that was submitted before",
    "cancel": "end a request, wherever it stands",
    "status": "show queues, agents and attainment",
    "explain": "explain where a request stands and why",
    "whatif": "say what would change with more or fewer instances",
    "sim": "simulate a fleet and compare policies",
    "profile": "list, fit and check profiles of engines",
    "plan": "solve planning problems from files",
    "bench": "measure the data plane, the core, the planner or the simulator",
    "certs": "make, renew and revoke the certificates of a fleet",
    "config": "check or show the configuration",
    "init": "write a configuration for the GPUs, models and servers of this machine",
    "doctor": "find out what is wrong with a fleet, and what to do about it",
    "completion": "print what makes a shell complete `qlm` commands",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise QlmError(f"{message}. See `{self.prog} --help`.")


def _parser(only: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qlm", description="Serve interactive and batch LLM requests from one GPU fleet."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    if only is not None:
        importlib.import_module(f"qlm.commands.{only}").add_parser(subparsers)
        chosen = subparsers.choices[only]
        chosen.description = (
            chosen.description or f"{COMMANDS[only][0].upper()}{COMMANDS[only][1:]}."
        )
    for name, text in COMMANDS.items():
        if name != only:
            subparsers.add_parser(name, help=text, add_help=False)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """The parser with every command in full, which takes its time."""
    parser = argparse.ArgumentParser(prog="qlm")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"qlm.commands.{name}").add_parser(subparsers)
    return parser


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options_of(below)


def _run(arguments: list[str]) -> int:
    asked = next((word for word in arguments if not word.startswith("-")), None)
    command = asked if asked in COMMANDS else None
    parser = _parser(command)
    if asked is not None and command is None:
        meant = did_you_mean(asked, COMMANDS)
        raise QlmError(f"{asked[:64]!r} is no command. See `qlm --help`.{meant}")
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        meant = did_you_mean(unknown[0].partition("=")[0], _options_of(parser))
        prog = f"qlm {command}" if command else "qlm"
        raise QlmError(f"unrecognized arguments: {' '.join(unknown)}. See `{prog} --help`.{meant}")
    if args.version:
        from importlib.metadata import version

        print(f"qlm {version('qlm-serving')}")
        return 0
    if args.command is None:
        parser.print_help()
        return EXIT_ERROR
    overwritten.check()
    status: int = importlib.import_module(f"qlm.commands.{args.command}").run(args)
    return status


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run `qlm` with `arguments` (default: those of the process) and return the exit status."""
    # gRPC's own remarks would stand between our structured log lines; its errors reach us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # What it does around a fork may crash the child before that becomes another program, which is all we fork for.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    if arguments is None:
        # A process that is told to end leaves as after Ctrl-C: in order, with nothing left behind.
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except QlmError as error:
        print(f"qlm: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"qlm: error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
