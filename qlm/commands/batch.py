"""`qlm batch`: submits files of requests as batches, foresees their ends, shows how far they are, fetches results, ends them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlm.commands import options

if TYPE_CHECKING:
    from qlm.batch_client import BatchClient

ENDPOINT = "/v1/chat/completions"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("batch", help="submit, foresee, watch, fetch and cancel batches")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    submit = actions.add_parser("submit", help="upload a file of requests and have them run")
    estimate = actions.add_parser("estimate", help="say when a file would be done, and run nothing")
    for action in (submit, estimate):
        action.add_argument("file", type=Path, metavar="FILE.jsonl", help="one request a line")
        action.add_argument(
            "--window", default="24h", help="by when: 90m, 24h, 7d (default: %(default)s)"
        )
        action.add_argument("--endpoint", help="of its lines (default: the first line's url)")
    submit.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="may be repeated"
    )
    submit.add_argument("--watch", action="store_true", help="show its progress until it is over")
    status = actions.add_parser("status", help="show where a batch stands")
    watch = actions.add_parser("watch", help="show a batch's progress until it is over")
    results = actions.add_parser("results", help="fetch what a batch has answered")
    cancel = actions.add_parser("cancel", help="end a batch; what has finished is kept")
    listed = actions.add_parser("list", help="show the newest batches")
    for action in (status, watch, results, cancel):
        action.add_argument("id", help="the batch, as `qlm batch submit` or the API named it")
    results.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")
    results.add_argument("--errors", action="store_true", help="of the lines that failed instead")
    listed.add_argument("--limit", type=int, default=20, help="most shown (default: %(default)s)")
    for action in (status, listed):
        action.add_argument(
            "--json", action="store_true", help="print OpenAI's objects, one a line"
        )
    estimate.add_argument("--json", action="store_true", help="print the gateway's answer")
    for action in (submit, estimate, status, watch, results, cancel, listed):
        options.add_http(action)
        options.add_access(action)
        options.add_config(action)


def run(args: argparse.Namespace) -> int:
    """Carry it out; status 1 where a batch that was watched did not complete, or one that was asked about would be late."""
    import asyncio

    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from qlm.batch_client import BatchClient

    if args.action == "submit":
        metadata = _metadata(args.metadata)
    if args.action in ("submit", "estimate"):
        found = _endpoint_of(args.file)
        endpoint = args.endpoint or found
    url, key, ca = options.url_of(args), options.key_of(args), options.ca_of(args)
    async with BatchClient(url, api_key=key, ca=ca) as client:
        match args.action:
            case "submit":
                return await _submit(client, args, endpoint, metadata)
            case "estimate":
                return await _estimate(client, args, endpoint)
            case "status":
                return _show(await client.get(args.id), args)
            case "watch":
                return await _watch(client, await client.get(args.id))
            case "results":
                return await _results(client, args)
            case "cancel":
                print((await client.cancel(args.id))["status"])
                return 0
            case _:
                return await _list(client, args)


async def _submit(
    client: BatchClient, args: argparse.Namespace, endpoint: str, metadata: dict[str, str]
) -> int:
    import sys

    file_id = await client.upload(args.file)
    batch = await client.create(file_id, endpoint=endpoint, window=args.window, metadata=metadata)
    print(batch["id"], flush=True)
    if args.watch:
        return await _watch(client, batch)
    hint = (
        f"`qlm batch watch {batch['id']}` shows its progress, `qlm batch results` fetches answers"
    )
    print(hint, file=sys.stderr)
    return 0


async def _estimate(client: BatchClient, args: argparse.Namespace, endpoint: str) -> int:
    import json
    import time

    from qlm import batch_views

    file_id = await client.upload(args.file)
    try:
        said = await client.estimate(file_id, endpoint=endpoint, window=args.window)
    finally:
        # It was for this question alone.
        await client.delete(file_id)
    print(json.dumps(said) if args.json else batch_views.foreseen(said, time.time()))
    return 0 if said["feasible"] else 1


async def _watch(client: BatchClient, batch: dict[str, Any]) -> int:
    from qlm import batch_views

    over = await batch_views.watch(batch, client.get_patiently)
    return 0 if over["status"] == "completed" else 1


def _show(batch: dict[str, Any], args: argparse.Namespace) -> int:
    import json
    import time

    from qlm import batch_views

    print(json.dumps(batch) if args.json else batch_views.table(batch, time.time()))
    return 0


async def _results(client: BatchClient, args: argparse.Namespace) -> int:
    import sys

    from qlm.batch_client import OVER
    from qlm_core.errors import QlmError

    if args.output is not None:
        options.require_writable(args.output, "--output")
    batch = await client.get(args.id)
    if batch["status"] not in OVER:
        raise QlmError(
            f"{args.id}: it is {batch['status']}, and its results are written at its end. "
            f"`qlm batch watch {args.id}` waits for that."
        )
    file_id = batch["error_file_id" if args.errors else "output_file_id"]
    if file_id is None:
        what = "failed" if args.errors else "was answered"
        raise QlmError(f"{args.id}: no line {what}. `qlm batch status {args.id}` says more.")
    if args.output is None:
        await client.content(file_id, sys.stdout.buffer)
        sys.stdout.flush()
        return 0
    with args.output.open("wb") as out:
        await client.content(file_id, out)
    return 0


async def _list(client: BatchClient, args: argparse.Namespace) -> int:
    import json
    import time

    from qlm import batch_views
    from qlm_core.errors import QlmError

    now_s = time.time()
    if args.limit < 1:
        raise QlmError(f"--limit: {args.limit} is too low. Give at least 1.")
    async for batch in client.list(args.limit):
        if args.json:
            print(json.dumps(batch))
        else:
            created = batch_views.clock(batch["created_at"], now_s)
            print(f"{batch['id']}  {created}  {batch_views.line(batch, now_s)}")
    return 0


def _metadata(pairs: list[str]) -> dict[str, str]:
    from qlm_core.errors import QlmError

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key):
            raise QlmError(f"--metadata: {pair!r} is not KEY=VALUE.")
        found[key] = value
    return found


def _endpoint_of(file: Path) -> str:
    """The url of the first line; the gateway says what is wrong with a file that has none. Raises QlmError."""
    import json

    from qlm_core.errors import QlmError

    try:
        with file.open("rb") as lines:
            first = next((line for line in lines if line.strip()), b"")
    except OSError as error:
        raise QlmError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError, RecursionError):
        url = None
    return url if isinstance(url, str) else ENDPOINT
