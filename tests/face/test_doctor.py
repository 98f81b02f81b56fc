"""`qlm doctor`: what it says of a fleet that works, of one that does not, and of ports that speak something else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from protos.speaking import speaks
from qlm import doctor
from qlm.__main__ import main
from qlm.commands.doctor import line_of
from qlm.doctor import Finding, Gateway
from qlm_core.config import Config
from tests.gateway.peers import config as gateway_config
from tests.gateway.peers import fleet, running

MODEL = {"models": {"tiny": {}}}


async def examined(config: Config, gateway: Gateway, said: tuple[str, ...] = ()) -> list[Finding]:
    return [finding async for finding in doctor.examine(config, gateway, said)]


def wrong(found: list[Finding]) -> dict[str, str]:
    return {one.part: f"{one.found}. {one.remedy}" for one in found if not one.well}


async def test_a_fleet_is_told_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [
        {"name": name, "models": ["tiny"], "host": "gpu-1" if name == "away" else ""}
        for name in ("up", "down", "away", "never")
    ]
    view = {
        "agents": [
            {"id": "up", "connected": True, "ready": True, "awake_model": "tiny", "swapping_to": None},
            {"id": "down", "connected": True, "ready": False, "awake_model": None, "swapping_to": None},
            {"id": "away", "connected": False, "ready": True, "awake_model": "tiny", "swapping_to": None},
            {"id": "new", "connected": True, "ready": True, "awake_model": "tiny", "swapping_to": None},
        ]
    }  # fmt: skip
    async with fleet() as it:

        async def viewed() -> bytes:
            return json.dumps(view).encode()

        monkeypatch.setattr(it.gateway._solver, "view", viewed)
        gateway = {
            "solver": it.gateway._solver._config.solver,
            "agents_listen": it.addresses.agents,
            "http_listen": it.addresses.http,
            "store": {"kind": "memory"},
        }
        config = Config.from_mapping(
            MODEL | {"agents": agents, "gateway": gateway, "solver": {"listen": gateway["solver"]}}
        )
        found = await examined(
            config, Gateway(url=it.url, grpc=it.addresses.grpc, api_key="", ca="")
        )
    told = wrong(found)
    assert told.keys() == {"configuration", "agent down", "agent away", "agent never"}
    assert "no profile of 'tiny' on a100" in told["configuration"]
    assert "run/down-*.log" in told["agent down"]
    assert told["agent away"].startswith("is away. Start it by `qlm agent --host gpu-1`")
    assert told["agent never"].startswith("has not joined. Start it by `qlm agent --name never`")
    well = {one.part: one.found for one in found if one.well}
    assert well["agent up"] == "ready, tiny is awake"
    assert well["agent new"] == "has joined, and is not in this configuration"
    assert "speaks gRPC" in well["solver"]
    assert "speaks gRPC" in well["gateway, for agents"]
    assert well["gateway"] == "requests are served"


async def test_a_gateway_without_a_solver_says_so() -> None:
    async with running(gateway_config()) as (_, at):
        gateway = {"agents_listen": at.agents, "http_listen": at.http, "store": {"kind": "memory"}}
        config = Config.from_mapping({"gateway": gateway | {"solver": "127.0.0.1:1"}})
        found = await examined(
            config, Gateway(url=f"http://{at.http}", grpc=at.grpc, api_key="", ca="")
        )
    told = wrong(found)
    assert told["gateway"] == (
        "no request is served now: no solver is connected. "
        "Start `qlm solver`, and see that gateway.solver leads to it."
    )
    assert told["solver"].startswith("127.0.0.1:1 is not reached from here. Start `qlm solver`")
    assert "gateway, gRPC" in told


async def test_ports_that_speak_something_else_are_recognised() -> None:
    async with running(gateway_config()) as (_, at), something_else() as other:
        crossed = Gateway(url=f"http://{at.grpc}", grpc=at.http, api_key="", ca="")
        gateway = {"agents_listen": at.agents, "store": {"kind": "memory"}, "solver": at.http}
        config = Config.from_mapping({"gateway": gateway})
        told = wrong(await examined(config, crossed))
        assert "speaks gRPC. Give the gateway's HTTP" in told["gateway, HTTP"]
        assert "speaks HTTP. Give the gateway's gRPC" in told["gateway, gRPC"]
        assert "speaks HTTP, where gRPC is wanted" in told["solver"]
        strange = Gateway(url=f"http://{other}", grpc=at.grpc, api_key="", ca="")
        told = wrong(await examined(config, strange))
        assert "what answers there is no gateway" in told["gateway, HTTP"]


@contextlib.asynccontextmanager
async def something_else() -> AsyncIterator[str]:
    async def answered(_: web.Request) -> web.Response:
        return web.json_response({"hello": "you"})

    app = web.Application()
    app.router.add_get("/health", answered)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "spoken"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "http"),
        (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x04\x00", "grpc"),
        (b"\x15\x03\x03\x00\x02\x02\x46\x00\x00", "tls"),
        (b"", "tls"),
        (b"SSH-2.0-OpenSSH", "http"),
    ],
)
async def test_what_a_port_speaks_is_told_by_its_first_bytes(answer: bytes, spoken: str) -> None:
    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        assert await speaks(f"{host}:{port}") == spoken
    assert await speaks("127.0.0.1:1") == ""


async def test_the_file_and_the_machine_are_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vllm = {"kind": "vllm", "vllm": {"command": [sys.executable]}}
    agent = {"name": "a", "models": ["mistral-7b"], "engine": vllm, "instances": 2}
    monkeypatch.setattr(
        doctor.discovery,
        "gpus",
        lambda: [doctor.discovery.Gpu(index=0, name="A100", memory_bytes=8 << 30)],
    )
    config = Config.from_mapping(
        {
            "agents": [agent],
            "insecure": True,
            "solver": {"listen": "0.0.0.0:7401"},
            "gateway": {"solver": "127.0.0.1:7409", "store": {"path": str(tmp_path / "q" / "s.db")}},
        }
    )  # fmt: skip
    nobody = Gateway(url="http://127.0.0.1:1", grpc="127.0.0.1:1", api_key="", ca="")
    lines = "\n".join(line_of(one) for one in await examined(config, nobody, ("solver",)))
    assert "WRONG  configuration: gateway.solver: 127.0.0.1:7409 does not lead" in lines
    assert "no agent serves vicuna-13b" in lines
    assert "solver.listen 0.0.0.0:7401 asks nobody who they are" in lines
    assert f"ok     engine: {sys.executable}: is on the PATH" in lines
    assert "agents of this machine use GPUs 0, 1; nvidia-smi shows 0\n       Correct" in lines
    assert "ok     store" in lines
    assert "WRONG  gateway, HTTP: http://127.0.0.1:1: no gateway answers\n" in lines


def test_the_command_says_it_in_lines_or_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    at = ["--address", "127.0.0.1:1", "--url", "127.0.0.1:1", "--set", "port_base=1"]
    at += ["--set", "gateway.http_listen=127.0.0.1:1"]
    assert main(["doctor", *at]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "ok     configuration: 2 models, 3 agents"
    assert said[-1].endswith("are not well")
    assert main(["doctor", "--json", *at]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"part", "well", "found", "remedy"} == found[0].keys()
