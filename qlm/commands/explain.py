"""`qlm explain ID`: why a request stands where it stands."""

from __future__ import annotations

import argparse

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

    from protos.qlm.v1 import client_service_pb2 as pb
    from qlm import dial

    with dial.stub(options.address_of(args)) as stub:
        answer = stub.ExplainRequest(
            pb.ExplainRequestRequest(id=args.id),
            metadata=dial.metadata(options.key_of(args)),
            timeout=dial.CALL_TIMEOUT_S,
        )
    explanation = json.loads(answer.explanation_json)
    if args.json:
        print(json.dumps(explanation, indent=2))
        return 0
    for key, value in explanation.items():
        if isinstance(value, list):
            print(f"{key}:")
            for item in value:
                print(f"  {_flat(item)}")
        elif value is not None:
            print(f"{key}: {_flat(value)}")
    return 0


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)
