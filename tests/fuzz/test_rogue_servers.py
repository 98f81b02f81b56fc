"""Whatever a solver or a gateway says to those who dialled it: they hang up at worst, dial again, and go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from agents.daemon import Daemon
from gateway import solver_link
from gateway.service import Gateway
from protos import wire
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from qlm_core.config import Config
from qlm_core.messages import Gateways
from qlm_core.model import GatewayId
from tests.fuzz.bodies import MODEL
from tests.fuzz.effort import fuzzed
from tests.fuzz.messages import sent
from tests.fuzz.served import Notes

STREAMS: dict[str, MethodDescriptor] = {
    service.methods[0].name: service.methods[0]
    for service in (
        gateway_pb.DESCRIPTOR.services_by_name["GatewaySessionService"],
        agent_pb.DESCRIPTOR.services_by_name["AgentSessionService"],
        work_pb.DESCRIPTOR.services_by_name["WorkService"],
    )
}
DIALLED_S = 10.0
Result = TypeVar("Result")


class Rogue:
    """A server of all three streams, each of which says what a test wants and then hangs up.

    Attributes:
        sessions: how often each stream was opened.
    """

    def __init__(self) -> None:
        self.sessions = dict.fromkeys(STREAMS, 0)
        self.lines: dict[str, list[bytes]] = {name: [] for name in STREAMS}
        self.address = ""
        # Whoever is not to be fooled just now is told of a gateway and left alone.
        self.odd = ""

    async def serve(self, server: grpc.aio.Server) -> None:
        """Listen."""
        for name, method in STREAMS.items():
            handler = grpc.stream_stream_rpc_method_handler(self._said(name))
            server.add_generic_rpc_handlers(
                [
                    grpc.method_handlers_generic_handler(
                        method.containing_service.full_name, {name: handler}
                    )
                ]
            )
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()

    def _said(self, name: str) -> Any:
        async def session(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.sessions[name] += 1
            if name == "AgentSession":
                known = Gateways(((GatewayId("rogue"), self.address),))
                yield wire.agent_order_to_wire(known, 0.0).SerializeToString()
            if self.odd != name:
                async for _ in requests:
                    if self.odd == name:
                        break
                    yield b""
            for line in self.lines[name]:
                yield line

        return session


class Fooled:
    """A gateway and an agent that dialled a rogue."""

    def __init__(self, rogue: Rogue, gateway: Gateway) -> None:
        self.rogue, self.notes = rogue, Notes()
        self._gateway = asyncio.ensure_future(gateway.wait())
        asyncio.get_running_loop().set_exception_handler(
            lambda _, said: self.notes.faults.append(f"the event loop caught {said}")
        )

    def tell(self, name: str, lines: list[bytes]) -> None:
        """Have a stream say something, and wait until it has been dialled again after that."""
        self.rogue.lines[name], self.rogue.odd = lines, name
        until = self.rogue.sessions[name] + 3
        deadline_s = time.monotonic() + DIALLED_S
        while self.rogue.sessions[name] < until:
            assert time.monotonic() < deadline_s, f"{name} is not dialled any more"
            assert not self._gateway.done()
            time.sleep(0.002)
        assert not (faults := self.notes.take()), faults

    async def close(self) -> None:
        self._gateway.cancel()
        await asyncio.wait([self._gateway])


@contextlib.asynccontextmanager
async def _fooled() -> AsyncIterator[Fooled]:
    rogue, server = Rogue(), grpc.aio.server()
    await rogue.serve(server)
    config = Config.from_mapping(
        {
            "models": {MODEL: {}},
            "agents": [
                {
                    "name": "a",
                    "models": [MODEL],
                    "gpu": "a10",
                    "solver": rogue.address,
                    "reconnect_s_max": 0.01,
                }
            ],
            "gateway": {
                "http_listen": "127.0.0.1:0",
                "grpc_listen": "127.0.0.1:0",
                "agents_listen": "127.0.0.1:0",
                "solver": rogue.address,
                "store": {"kind": "memory"},
                "drain_s": 0.1,
            },
        }
    )
    gateway, daemon = Gateway(config), Daemon(config, config.agents[0])
    try:
        await gateway.start()
        await daemon.start()
        fooled = Fooled(rogue, gateway)
        yield fooled
        await fooled.close()
    finally:
        await daemon.close()
        await gateway.stop()
        await server.stop(None)


@pytest.fixture(scope="module")
def fooled() -> Iterator[Fooled]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fooled")
    thread.start()

    def run(work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30.0)

    there = _fooled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver_link, "BACKOFF_S_MAX", 0.01)
        made = run(there.__aenter__())
        logging.getLogger().addHandler(made.notes)
        try:
            yield made
        finally:
            logging.getLogger().removeHandler(made.notes)
            run(there.__aexit__(None, None, None))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.mark.parametrize("name", STREAMS)
@fuzzed
@given(data=st.data())
def test_who_dialled_dials_again(fooled: Fooled, name: str, data: st.DataObject) -> None:
    lines = data.draw(st.lists(sent(STREAMS[name].output_type), min_size=1, max_size=4))
    fooled.tell(name, lines)
