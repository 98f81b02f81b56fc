"""A whole fleet to be fuzzed: gateway, solver and a simulated agent on an event loop of their own, and what must hold of them.

Whatever a test sends, nothing is logged at length or with a traceback, no secret shows, no task dies, and a good request is
answered afterwards. Real sockets on loopback; only the planner is a small one.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from agents.daemon import Daemon
from gateway.service import Addresses, Gateway
from protos.doors import Doors, Rejections
from protos.identity import SOLVER
from qlm_core.config import Config
from solver.driver import Driver
from solver.service import make_server
from tests.fuzz.bodies import CANARY, MODEL
from tests.solver.test_sessions import InlinePlanner

KEY = "canary-key-5ca1ab1e"
TIMEOUT_S = 15.0
RECORD_CHARS_MAX = 2_000
SERIES_MAX = 1_000
_STANDARD = (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName")
Result = TypeVar("Result")


class Notes(logging.Handler):
    """What was logged, and what is wrong with it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.faults: list[str] = []

    def take(self) -> list[str]:
        """The faults since this was last asked, so that each is laid to who caused it."""
        faults, self.faults = self.faults, []
        return faults

    def emit(self, record: logging.LogRecord) -> None:
        if "PollerCompletionQueue" in record.getMessage() or record.name == "grpc._common":
            # gRPC's own words: of another test's event loop, and of a server that was dialled and sends no messages.
            return
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        text = f"{record.name}: {record.getMessage()} {fields}"
        if record.exc_info or "Traceback" in text:
            self.faults.append(f"a traceback: {text} {record.exc_info}")
        if len(text) > RECORD_CHARS_MAX:
            self.faults.append(f"{len(text)} characters: {text[:200]}")
        if found := secrets_in(text):
            self.faults.append(f"{found} in the log: {text[:200]}")


def secrets_in(text: str) -> str:
    """The canary that a text quotes, "" if none."""
    return next((canary for canary in (KEY, CANARY) if canary in text), "")


def configured(solver: str) -> Config:
    """The configuration of the fleet."""
    return Config.from_mapping(
        {
            "models": {MODEL: {"max_model_len": 64}},
            "agents": [
                {
                    "name": "sim",
                    "models": [MODEL],
                    "gpu": "a10",
                    "solver": solver,
                    "engine": {"kind": "sim", "sim": {"zero_delay": True}},
                }
            ],
            "gateway": {
                "http_listen": "127.0.0.1:0",
                "grpc_listen": "127.0.0.1:0",
                "agents_listen": "127.0.0.1:0",
                "solver": solver,
                "drain_s": 0.1,
                "api_keys": {"fuzz": {"key": KEY, "operator": True}},
                "store": {"kind": "memory"},
                "limits": {"body_bytes_max": 1_000_000},
            },
        }
    )


class Fleet:
    """The parts, and what tests do with them from another thread."""

    def __init__(self, gateway: Gateway, addresses: Addresses, solver: str, driver: Driver) -> None:
        self.gateway, self.addresses, self.solver, self.driver = gateway, addresses, solver, driver
        self.notes = Notes()
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._lost)
        self._parts = self.loop.create_task(gateway.wait())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Have something done on the fleet's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT_S)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request over HTTP, with the API key: status and body."""
        host, _, port = self.addresses.http.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        try:
            said = {"authorization": f"Bearer {KEY}", **(headers or {})}
            connection.request(method, path, body, said)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def check(self) -> None:
        """That all is well."""
        assert not (faults := self.notes.take()), faults
        assert not self._parts.done()
        body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
        status, answer = self.ask("POST", "/v1/completions", body)
        assert (status, len(json.loads(answer)["choices"])) == (200, 1), answer
        assert not (faults := self.notes.take()), faults

    def check_metrics(self) -> int:
        """That metrics tell no secret and are not too many; returns how many lines they take."""
        status, page = self.ask("GET", "/metrics")
        assert status == 200
        assert secrets_in(page.decode()) == ""
        lines = len(page.splitlines())
        assert lines < SERIES_MAX
        return lines

    def _lost(self, _: asyncio.AbstractEventLoop, said: dict[str, Any]) -> None:
        self.notes.faults.append(f"the event loop caught {said}")

    async def close(self) -> None:
        self._parts.cancel()
        await asyncio.wait([self._parts])


@contextlib.asynccontextmanager
async def _solving() -> AsyncIterator[tuple[Driver, str]]:
    config = Config.from_mapping({"solver": {"listen": "127.0.0.1:0"}})
    driver = Driver(config, InlinePlanner(), clock=time.monotonic)
    doors = Doors(config, SOLVER)
    server, address = await make_server(driver, config.solver, doors, Rejections())
    await server.start()
    try:
        yield driver, address
    finally:
        await server.stop(None)
        await driver.close()


@contextlib.asynccontextmanager
async def _fleet() -> AsyncIterator[Fleet]:
    async with _solving() as (driver, solver):
        config = configured(solver)
        gateway = Gateway(config)
        daemon = Daemon(config, config.agents[0])
        try:
            fleet = Fleet(gateway, await gateway.start(), solver, driver)
            await daemon.start()
            async with asyncio.timeout(TIMEOUT_S):
                while not any(link.connected for link in daemon.gateways.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield fleet
            await fleet.close()
        finally:
            await daemon.close()
            await gateway.stop()


@contextlib.contextmanager
def serving() -> Iterator[Fleet]:
    """A fleet for as long as the block lasts, which ends well if the fleet is well."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fleet")
    thread.start()
    there = _fleet()

    def run(work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, loop).result(2 * TIMEOUT_S)

    root = logging.getLogger()
    level = root.level
    try:
        fleet = run(there.__aenter__())
        root.addHandler(fleet.notes)
        root.setLevel(logging.INFO)
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
        try:
            yield fleet
            fleet.check()
            fleet.check_metrics()
        finally:
            root.removeHandler(fleet.notes)
            root.setLevel(level)
            run(there.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
