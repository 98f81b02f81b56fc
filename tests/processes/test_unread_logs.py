"""Processes whose output nobody reads: they serve all the same, end when they are told to, and say what was lost."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest

from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2 as types
from qlm import config_file, fleet, logs
from qlm.service import READY
from tests.processes.conftest import PATIENCE_S, new_request

# Each leaves a line at least, so that these fill the queue and both pipes that a line of a child goes through.
REQUESTS = logs.LINES_MAX + 4_000
AT_ONCE = 500


@contextmanager
def unread(command: str, file: Path) -> Iterator[subprocess.Popen[str]]:
    """A service whose standard error nobody reads, once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qlm", command, "--config", str(file), "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{READY}\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


async def make_noise(address: str) -> None:
    """Requests that wait and are cancelled, each of them a line in the gateway's log."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.ClientServiceStub(channel)

        async def come_and_go(number: int) -> None:
            reply = await stub.Enqueue(pb.EnqueueRequest(request=new_request(number, 1)))
            asked = pb.CancelRequestRequest(id=reply.accepted.id)
            assert (await stub.CancelRequest(asked)).phase == types.PHASE_CANCELLED

        for start in range(0, REQUESTS, AT_ONCE):
            numbers = range(start, start + AT_ONCE)
            await asyncio.gather(*(come_and_go(number) for number in numbers))


@pytest.mark.parametrize("command", ["gateway", "up"])
async def test_a_log_that_nobody_reads_holds_nothing_up(command: str, tmp_path: Path) -> None:
    overrides = ["agents=[]", "gateway.store.kind=memory", "log.level=debug"]
    config = fleet.temporary_config(tmp_path, overrides)
    file = tmp_path / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    with unread(command, file) as process:
        async with asyncio.timeout(PATIENCE_S):
            await make_noise(config.gateway.grpc_listen)
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{config.gateway.http_listen}/health") as answer,
            ):
                assert answer.status == 200
        assert process.stderr is not None
        os.kill(process.pid, signal.SIGTERM)
        if command == "gateway":
            # It ends although the last of its lines never leave it.
            assert process.wait(PATIENCE_S) == 0
        log = process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
        if command == "up":
            assert re.search(r"log lines dropped, since nobody read them lines=[1-9]", log)
