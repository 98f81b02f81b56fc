"""A solver, a gateway and agents whose doors are shut, in this process and over real gRPC, and what rogues bring."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec

from gateway.service import Addresses, Gateway
from protos import wire
from protos.doors import CARRIER, Doors, Rejections
from protos.identity import Part, Role
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import client_service_pb2 as client_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from qlm.ports import free_addresses
from qlm_core import messages as m
from qlm_core.config import Config
from qlm_core.model import AgentId, InstanceState, ModelName
from solver.driver import Driver
from solver.service import make_server
from tests.manager.conftest import profile
from tests.solver.test_sessions import InlinePlanner

SECRET = "s3cret-canary-of-the-fleet"
ALICE, BOB, ADMIN = "alice-canary-key", "bob-canary-key", "admin-canary-key"
KEYS = {
    "alice": {"key": ALICE, "requests_max": 3},
    "bob": {"key": BOB},
    "admin": {"key": ADMIN, "operator": True},
}
AGENT = Part(Role.AGENT, "agent-0")
OTHER = Part(Role.AGENT, "agent-1")
GATEWAY = Part(Role.GATEWAY, "gateway-0")
AGENTS = [{"name": part.name, "models": ["tiny"], "metrics_listen": ""} for part in (AGENT, OTHER)]
WAIT_S = 5.0

GATEWAY_SESSIONS = gateway_pb.DESCRIPTOR.services_by_name["GatewaySessionService"]
AGENT_SESSIONS = agent_pb.DESCRIPTOR.services_by_name["AgentSessionService"]
WORK = work_pb.DESCRIPTOR.services_by_name["WorkService"]
CLIENTS = client_pb.DESCRIPTOR.services_by_name["ClientService"]
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


def make_certificates(folder: Path, *words: str) -> None:
    """Run `qlm certs` on the parts of these beds."""
    file = folder.parent / "parts.yaml"
    file.write_text(msgspec.json.encode({"models": {"tiny": {}}, "agents": AGENTS}).decode())
    subprocess.run(
        [
            *(sys.executable, "-m", "qlm", "certs", *words),
            *("--folder", str(folder), "--config", str(file)),
        ],
        check=True,
        capture_output=True,
    )


def config_of(secret: bool, certificates: Path | None, **gateway: Any) -> Config:
    """A configuration whose doors ask for a secret, for certificates, or for both."""
    (address,) = free_addresses(1)
    section: dict[str, Any] = {
        "http_listen": "127.0.0.1:0",
        "grpc_listen": "127.0.0.1:0",
        "agents_listen": "127.0.0.1:0",
        "solver": address,
        "api_keys": KEYS,
        "drain_s": 0.1,
        "store": {"kind": "memory"},
    }
    shut: dict[str, Any] = {"auth": {"secret": SECRET}} if secret else {}
    if certificates is not None:
        shut["tls"] = {
            "ca": f"{certificates}/ca.crt",
            "cert": f"{certificates}/{{part}}.crt",
            "key": f"{certificates}/{{part}}.key",
            "revoked": f"{certificates}/revoked.txt",
        }
    return Config.from_mapping(
        {
            "models": {"tiny": {"max_model_len": 1000}, "other": {}},
            "agents": AGENTS,
            "solver": {"listen": address, "metrics_listen": ""},
            "gateway": section | gateway,
            **shut,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """What runs."""

    config: Config
    gateway: Gateway
    at: Addresses
    driver: Driver
    solver: grpc.aio.Server
    rejections: Rejections
    secret: bool
    certificates: Path | None

    @property
    def rejected(self) -> int:
        """How many were turned away at any door."""
        doors = (self.rejections, self.gateway._desk.rejections)
        return sum(sum(one.counts.values()) for one in doors)

    @contextlib.asynccontextmanager
    async def dial(
        self, address: str, who: Part, to: Part, *, config: Config | None = None
    ) -> AsyncIterator[grpc.aio.Channel]:
        """A channel as a part opens it."""
        async with Doors(config or self.config, who).channel(address, to, ()) as channel:
            yield channel


@contextlib.asynccontextmanager
async def shut(*, secret: bool, certificates: Path | None, **gateway: Any) -> AsyncIterator[Bed]:
    """A solver and a gateway that have found each other."""
    config = config_of(secret, certificates, **gateway)
    driver = Driver(config, InlinePlanner(), clock=time.monotonic)
    rejections = Rejections()
    doors = Doors(config, Part(Role.SOLVER, "solver"))
    server, _ = await make_server(driver, config.solver, doors, rejections)
    await server.start()
    made = Gateway(config)
    try:
        yield Bed(
            config=config,
            gateway=made,
            at=await made.start(),
            driver=driver,
            solver=server,
            rejections=rejections,
            secret=secret,
            certificates=certificates,
        )
    finally:
        await made.stop()
        await server.stop(None)
        await driver.close()


def without_secret(config: Config) -> Config:
    """The configuration of somebody who was not told the secret."""
    return msgspec.structs.replace(config, auth=Config().auth)


def agent_hello(name: str, epoch: int = 0) -> agent_pb.AgentSessionRequest:
    """An agent's first message to the solver."""
    hello = m.AgentHello(
        agent=AgentId(name),
        gpu="test",
        profiles=(profile("tiny"),),
        epoch=0,
        state=InstanceState(ready=True, awake_model=ModelName("tiny")),
    )
    message = wire.agent_message_to_wire(hello)
    message.hello.epoch = epoch
    return message


def work_hello(name: str) -> work_pb.WorkRequest:
    """An agent's first message to a gateway."""
    return wire.work_to_wire([m.WorkHello(AgentId(name), ())])


def methods_of(*services: Any) -> Iterator[tuple[str, bool]]:
    """The path of each method, and whether it takes a stream."""
    for service in services:
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", method.client_streaming


async def call(
    channel: grpc.aio.Channel,
    path: str,
    *,
    streams: bool = False,
    body: bytes = b"",
    metadata: Sequence[tuple[str, str]] = (),
) -> grpc.StatusCode:
    """How a call ends that sends these bytes and nothing else; UNKNOWN for a stream whose status was lost with it."""
    if streams:
        # Not ended from this side: a stream that ends as it is refused may end in either way.
        made: Any = channel.stream_stream(path)(metadata=metadata, timeout=WAIT_S)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await made.write(body)
    else:
        made = channel.unary_stream(path)(body, metadata=metadata, timeout=WAIT_S)
    try:
        async for _ in made:
            break
    except grpc.aio.AioRpcError as error:
        # A stream that is refused while its first message is on the way may be reset before its status has come.
        reset = "RST_STREAM" in str(error.details()) or error.code() is grpc.StatusCode.INTERNAL
        torn = streams and reset
        return grpc.StatusCode.UNKNOWN if torn else error.code()
    made.cancel()
    return grpc.StatusCode.OK


def told(secret: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries a secret."""
    return ((CARRIER, secret),)


def bearing(key: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries an API key."""
    return (("authorization", f"Bearer {key}"),)
