"""One gateway, put together: store, driver, both front doors, the link to the solver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.desk import Desk
from gateway.driver import Driver
from gateway.grpc_client import ClientServicer
from gateway.http import HttpApp
from gateway.intake import Intake
from gateway.metrics import Metrics
from gateway.open_files import make_room
from gateway.solver_link import SolverLink
from gateway.store import make_store
from gateway.work import WorkServicer
from protos.qlm.v1 import client_service_pb2, work_service_pb2
from protos.qlm.v1 import client_service_pb2_grpc as client_grpc
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core.config import Config
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError

log = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE_S = 75
# A gRPC stream that is still open after the drain is cut after this.
CUT_S = 1.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_WILDCARDS = ("0.0.0.0", "::", "[::]")  # noqa: S104


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway really listens, as host:port."""

    http: str
    grpc: str


async def serve(config: Config, *, ready: Callable[[Addresses], None] | None = None) -> None:
    """Run a gateway until cancelled, then drain it: nothing new, and time to finish what runs.

    Raises:
        QlmError: it cannot start (port in use, store not to be opened).
    """
    make_room(config.gateway.limits.connections_max)
    gateway = Gateway(config)
    try:
        addresses = await gateway.start()
        if ready is not None:
            ready(addresses)
        await gateway.wait()
    finally:
        await gateway.stop()


class Gateway:
    """A gateway with its listeners. `start`, then `wait`, then `stop`, once each."""

    def __init__(self, config: Config) -> None:
        self._config = config
        section = config.gateway
        self._metrics = Metrics(config, self._gauges)
        self._solver = SolverLink(
            section, work_address=self._work_address, rng=random.Random(section.id)
        )
        self.driver = Driver(
            section, make_store(section.store), self._metrics, tell=self._solver.tell
        )
        self._desk = Desk(
            config=config,
            driver=self.driver,
            intake=Intake(config, self._solver.models),
            solver=self._solver,
            metrics=self._metrics,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._work = WorkServicer(self.driver, message_bytes_max=section.limits.message_bytes_max)
        self._grpc: grpc.aio.Server | None = None
        self._http: _HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc_address = section.grpc_listen

    async def start(self) -> Addresses:
        """Open the store, listen, and begin to dial the solver. Raises QlmError."""
        section = self._config.gateway
        self._warn_of_listeners()
        sock = _listen(section.http_listen, "gateway.http_listen")
        try:
            self._grpc = self._make_grpc()
            await self.driver.start()
            await self._grpc.start()
        except BaseException:
            sock.close()
            raise
        self._http = _HttpServer(self._desk)
        self._tasks.append(asyncio.create_task(self._http.serve([sock])))
        await self._http.listening.wait()
        self._tasks.append(asyncio.create_task(self._solver.run(self.driver.handle)))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        host, _ = parse_address(section.http_listen, "gateway.http_listen")
        addresses = Addresses(f"{host}:{sock.getsockname()[1]}", self._grpc_address)
        log.info("gateway ready", extra={"http": addresses.http, "grpc": addresses.grpc})
        return addresses

    async def wait(self) -> None:
        """Until a part of the gateway ends, which none should."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise QlmError("a part of the gateway ended unexpectedly; its log says more")

    async def stop(self) -> None:
        """Drain and release everything. Durable requests wait in the store."""
        if self._http is not None:
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            await self.driver.drain()
            self._http.should_exit = True
        self._work.close()
        if self._grpc is not None:
            await self._grpc.stop(CUT_S)
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._solver.close()
        await self.driver.close()
        log.info("gateway stopped")

    # ---------------------------------------------------------------- parts

    def _make_grpc(self) -> grpc.aio.Server:
        section = self._config.gateway
        limit = section.limits.message_bytes_max
        server = grpc.aio.server(
            options=(
                # Two processes on one port would share its connections in silence.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Peers ping to notice a dead connection; none is punished for doing it often.
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
                ("grpc.http2.max_ping_strikes", 0),
            )
        )
        client_grpc.add_ClientServiceServicer_to_server(ClientServicer(self._desk), server)
        work_grpc.add_WorkServiceServicer_to_server(self._work, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, reflection.SERVICE_NAME), server)
        host, _ = parse_address(section.grpc_listen, "gateway.grpc_listen")
        try:
            port = server.add_insecure_port(section.grpc_listen)
        except RuntimeError:
            port = 0
        if port == 0:
            raise QlmError(
                f"gateway.grpc_listen: cannot listen on {section.grpc_listen}; it may be in use. "
                "Choose another port."
            )
        self._grpc_address = f"{host}:{port}"
        return server

    def _work_address(self) -> str:
        return self._config.gateway.advertise or self._grpc_address

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *_SERVICES):
            await self._health.set(service, status)

    def _warn_of_listeners(self) -> None:
        section = self._config.gateway
        for key in ("http_listen", "grpc_listen"):
            host, _ = parse_address(getattr(section, key), f"gateway.{key}")
            if host not in _LOOPBACK and not section.api_keys:
                log.warning("open to the network without API keys", extra={"listen": host})
        host, _ = parse_address(self._work_address(), "gateway.advertise")
        if host in _WILDCARDS:
            said = {"told": self._work_address(), "remedy": "set gateway.advertise"}
            log.warning("agents on other hosts cannot find this gateway", extra=said)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, float] | float]]:
        yield from self.driver.gauges()
        yield (
            "qlm_solver_connected",
            "Whether a solver session is open.",
            float(self._solver.connected),
        )


_SERVICES = (
    client_service_pb2.DESCRIPTOR.services_by_name["ClientService"].full_name,
    work_service_pb2.DESCRIPTOR.services_by_name["WorkService"].full_name,
)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own handling of signals, start-up and logs."""

    def __init__(self, desk: Desk) -> None:
        app = HttpApp(desk, connections=lambda: len(self.server_state.connections))
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
            )
        )
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _listen(address: str, key: str) -> socket.socket:
    """A listening socket. Raises QlmError naming the setting."""
    host, port = parse_address(address, key)
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise QlmError(
            f"{key}: cannot listen on {address} ({error.strerror}). Choose another port."
        ) from None
    sock.setblocking(False)
    return sock
