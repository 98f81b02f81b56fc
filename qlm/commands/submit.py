"""`qlm submit`: sends one request and prints its answer as it comes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from qlm.commands import options

if TYPE_CHECKING:
    from protos.qlm.v1 import client_service_pb2 as pb


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

    from protos.qlm.v1 import client_service_pb2 as pb
    from qlm import dial
    from qlm_core.errors import QlmError

    prompt = " ".join(args.prompt) or sys.stdin.read()
    if not prompt.strip():
        raise QlmError("prompt: empty. Give it as arguments or on standard input.")
    model = args.model or next(iter(options.config_of(args).models))
    request = pb.NewRequest(
        model=model,
        body_json=_body(args, prompt),
        endpoint=(pb.ENDPOINT_COMPLETIONS if args.completion else pb.ENDPOINT_CHAT_COMPLETIONS),
        slo_class=args.slo_class,
        tenant=args.tenant,
    )
    metadata = dial.metadata(options.key_of(args))
    with dial.stub(options.address_of(args)) as stub:
        if args.no_wait:
            answer = stub.Enqueue(
                pb.EnqueueRequest(request=request), metadata=metadata, timeout=dial.CALL_TIMEOUT_S
            )
            print(answer.accepted.id)
            return 0
        replies = stub.Submit(pb.SubmitRequest(request=request), metadata=metadata)
        return _follow(reply.event for reply in replies)


def _body(args: argparse.Namespace, prompt: str) -> bytes:
    import json

    body: dict[str, object] = (
        {"prompt": prompt}
        if args.completion
        else {"messages": [{"role": "user", "content": prompt}]}
    )
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    return json.dumps(body).encode()


def _follow(events: Iterable[pb.RequestEvent]) -> int:
    """Print an answer to standard output and what becomes of the request to standard error."""
    import sys

    from protos.qlm.v1 import types_pb2 as types

    for event in events:
        kind = event.WhichOneof("kind")
        if kind == "accepted":
            wait = ""
            if event.accepted.HasField("estimate"):
                estimate = event.accepted.estimate
                wait = f", estimated wait {estimate.mean_s:.1f} s (p90 {estimate.p90_s:.1f} s)"
            print(f"{event.accepted.id}: {event.accepted.slo_class}{wait}", file=sys.stderr)
        elif kind == "chunk":
            for text in _texts(event.chunk.chunk_json):
                print(text, end="", flush=True)
        elif kind == "ended":
            print()
            ended = event.ended
            phase = types.Phase.Name(ended.phase).removeprefix("PHASE_").lower()
            ttft = f", first token after {ended.ttft_s:.2f} s" if ended.HasField("ttft_s") else ""
            print(
                f"{phase} ({ended.reason}){ttft}, {ended.usage.output_tokens} tokens in "
                f"{ended.e2e_s:.2f} s, SLO {'met' if ended.attained else 'missed'}",
                file=sys.stderr,
            )
            return 0 if ended.phase == types.PHASE_FINISHED else 1
    return 1


def _texts(chunk: bytes) -> Iterator[str]:
    """The pieces of text in an OpenAI chunk of either kind."""
    import json

    for choice in json.loads(chunk).get("choices", ()):
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            yield text
