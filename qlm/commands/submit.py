"""`qlm submit`: sends one request and prints its answer as it comes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from qlm.client import Accepted, Ended, Event


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("submit", help="send one request and print its answer")
    parser.add_argument("prompt", nargs="*", help="the prompt (default: standard input)")
    parser.add_argument("--class", dest="slo_class", default="", help="SLO class (default: config)")
    parser.add_argument("--model", help="(default: the first configured one)")
    parser.add_argument("--max-tokens", type=int, help="limit of the answer")
    parser.add_argument("--completion", action="store_true", help="complete the text, do not chat")
    parser.add_argument("--no-wait", action="store_true", help="print the request's id and leave")
    parser.add_argument("--tenant", default="", help="who asks")
    options.add_grpc(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Send and print; status 1 unless the request finished."""
    import sys

    from qlm_core.errors import QlmError

    prompt = " ".join(args.prompt) or sys.stdin.read()
    if not prompt.strip():
        raise QlmError("prompt: empty. Give it as arguments or on standard input.")
    wish = {"slo_class": args.slo_class, "tenant": args.tenant}
    with options.client_of(args) as client:
        if args.no_wait:
            print(client.enqueue(_body(args, prompt), **wish).id)
            return 0
        return follow(client.submit(_body(args, prompt), **wish))


def _body(args: argparse.Namespace, prompt: str) -> dict[str, object]:
    model = args.model or next(iter(options.config_of(args).models))
    body: dict[str, object] = {"model": model}
    if args.completion:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    return body


def follow(events: Iterable[Event], id: str = "") -> int:
    """Print an answer to standard output and what becomes of the request to standard error.

    Returns 0 if it finished, else 1. Raises KeyboardInterrupt after saying that the request goes on.
    """
    import sys

    from qlm.client import Accepted, Output
    from qlm_core.model import Phase

    try:
        for event in events:
            if isinstance(event, Accepted):
                id = event.id
                print(f"{id}: {event.slo_class}{_wait(event)}", file=sys.stderr)
            elif isinstance(event, Output):
                print(event.text, end="", flush=True)
            else:
                print()
                print(_ending(event), file=sys.stderr)
                return 0 if event.phase is Phase.FINISHED else 1
    except KeyboardInterrupt:
        if id:
            print(
                f"\ninterrupted, but the request goes on: `qlm watch {id}` shows its answer, "
                f"`qlm cancel {id}` ends it",
                file=sys.stderr,
            )
        raise
    return 1


def _wait(accepted: Accepted) -> str:
    if accepted.estimate is None:
        return f", no estimate of its wait: `qlm explain {accepted.id}` says where it stands"
    mean_s, p90_s = accepted.estimate.mean_s, accepted.estimate.p90_s
    return f", estimated wait {mean_s:.1f} s (p90 {p90_s:.1f} s)"


def _ending(ended: Ended) -> str:
    ttft = f", first token after {ended.ttft_s:.2f} s" if ended.ttft_s is not None else ""
    return (
        f"{ended.phase.value} ({ended.reason}){ttft}, {ended.output_tokens} tokens in "
        f"{ended.e2e_s:.2f} s, SLO {'met' if ended.attained else 'missed'}"
    )
