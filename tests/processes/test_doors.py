"""A fleet of real processes behind its doors: it serves who has what is asked for, no rogue, and logs no secret."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import pytest

from protos import wire
from protos.doors import CARRIER
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm import fleet
from qlm.client import AsyncClient
from qlm_core import messages as m
from qlm_core.model import AgentId, Phase, RequestId

pytestmark = pytest.mark.processes

SECRET, ALICE, ADMIN, PROMPT = (f"canary-{what}" for what in ("secret", "alice", "admin", "prompt"))
BODY = {"model": "mistral-7b", "prompt": PROMPT, "max_tokens": 5}


async def command(*words: str) -> tuple[int, str]:
    """Status and output of a `qlm` command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qlm", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_a_fleet_behind_its_doors(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    status, said = await command("certs", "new", "--folder", str(certs))
    assert status == 0, said
    keys = {"alice": {"key": ALICE}, "admin": {"key": ADMIN, "operator": True}}
    tls = {
        "ca": f"{certs}/ca.crt",
        "cert": f"{certs}/{{part}}.crt",
        "key": f"{certs}/{{part}}.key",
        "revoked": f"{certs}/revoked.txt",
    }
    config = fleet.temporary_config(
        tmp_path,
        [
            f"auth.secret={SECRET}",
            f"tls={json.dumps(tls)}",
            f"gateway.tls={json.dumps({'cert': f'{certs}/clients.crt', 'key': f'{certs}/clients.key'})}",
            f"gateway.api_keys={json.dumps(keys)}",
            "solver.backend=greedy",
        ],
    )
    section = config.gateway
    ca = f"{certs}/ca.crt"
    async with fleet.running(config, tmp_path):
        async with AsyncClient(section.grpc_listen, api_key=ALICE, ca=ca) as client:
            left = await client.enqueue(BODY)
            assert (await client.wait(left.id)).phase is Phase.FINISHED
        # The rogue knows the port, the secret and the id, and has no certificate; then none of them.
        for metadata in (((CARRIER, SECRET),), ()):
            pull = [m.WorkHello(AgentId("a100-0"), ()), m.Pull((RequestId(left.id),))]
            async with grpc.aio.insecure_channel(section.agents_listen) as channel:
                stub = work_grpc.WorkServiceStub(channel)
                stream = stub.Work(iter([wire.work_to_wire(pull)]), metadata=metadata)
                with pytest.raises(grpc.aio.AioRpcError):
                    await anext(aiter(stream))
        at = ["--config", str(tmp_path / "config.yaml"), "--api-key"]
        status, said = await command("status", *at, ADMIN)
        assert status == 0
        assert "a100-1" in said
        status, said = await command("submit", "Hello", *at, ALICE)
        assert status == 0, said
        status, said = await command("status", *at, "wrong")
        assert status == 2
        assert said.endswith("`qlm` takes one from --api-key or QLM_API_KEY.\n")
        # Everybody goes on with what is renewed meanwhile.
        status, said = await command("certs", "renew", "--folder", str(certs))
        assert status == 0, said
        async with AsyncClient(section.grpc_listen, api_key=ALICE, ca=ca) as client:
            left = await client.enqueue(BODY)
            assert (await client.wait(left.id)).phase is Phase.FINISHED
    log = (tmp_path / "log.txt").read_text()
    assert "agent joined" in log
    assert "turned away" in log
    assert "Traceback" not in log
    for canary in (SECRET, ALICE, ADMIN, PROMPT):
        assert canary not in log
