"""One gateway, put together: store, driver, its listeners, the link to the solver."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2

from gateway.admission import Admission
from gateway.answer import Json
from gateway.batches.desk import BatchDesk
from gateway.batches.driver import Batches
from gateway.budget import Budget
from gateway.connections import Connections
from gateway.desk import Desk
from gateway.driver import Driver
from gateway.files import FileStore
from gateway.intake import Intake
from gateway.keeping import Keeper
from gateway.keys import ApiKeys, Caller
from gateway.listeners import (
    CLIENT_SERVICE,
    WORK_SERVICE,
    HttpServer,
    agents_server,
    client_certificates,
    clients_server,
    http_socket,
)
from gateway.metrics import Gauge, Metrics
from gateway.open_files import Room, make_room
from gateway.page.digest import batch_of
from gateway.page.hub import Hub
from gateway.page.stories import Stories
from gateway.page.tally import Tally
from gateway.responses.drafting import ResponseIntake
from gateway.responses.news import ResponseNews
from gateway.sight import Sight
from gateway.solver_link import SolverLink
from gateway.store import make_store
from gateway.tracing.exporting import Tracing
from gateway.webhooks.driver import Webhooks
from gateway.work import WorkServicer
from protos.doors import Doors, Rejections, warn_of_open_doors
from protos.identity import Part, Role
from qlm_core.config import Config
from qlm_core.config_doors import WILDCARDS
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError
from qlm_core.ledger import Row
from qlm_core.messages import GatewayFact
from qlm_core.model import RequestId

log = logging.getLogger(__name__)

# A gRPC stream that is still open after the drain is cut after this.
CUT_S = 1.0
# Of the batches on the page, the newest.
BATCHES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway really listens, as host:port."""

    http: str
    grpc: str
    agents: str


async def serve(config: Config, *, ready: Callable[[Addresses], None] | None = None) -> None:
    """Run a gateway until cancelled, then drain it: nothing new, and time to finish what runs.

    Raises:
        QlmError: it cannot start (port in use, store not to be opened).
    """
    limits = config.gateway.limits
    gateway = Gateway(config, make_room(limits.connections_max, limits.grpc_connections_max))
    try:
        addresses = await gateway.start()
        if ready is not None:
            ready(addresses)
        await gateway.wait()
    finally:
        await gateway.stop()


class Gateway:
    """A gateway with its listeners. `start`, then `wait`, then `stop`, once each.

    Args:
        room: for how many connections there is; as the configuration says unless given.

    Attributes:
        store, files, driver, batches: what it keeps, its open requests, and its batches that are not over.
        webhooks: who is told of what has ended.
        page: what /ui shows; None where it is off.
        tracing: what is told to OpenTelemetry; None where nobody listens.
    """

    def __init__(self, config: Config, room: Room | None = None) -> None:
        self._config = config
        section = config.gateway
        limits = section.limits
        self._room = room or Room(limits.connections_max, limits.grpc_connections_max)
        self._unread = Budget(limits.unread_bytes_max)
        self._doors = Doors(config, Part(Role.GATEWAY, section.id))
        self._certificates = client_certificates(section)
        # Who hears the facts that the ledger has for the solver, before it does.
        self._listening: list[Callable[[GatewayFact], None]] = []
        rejections = Rejections()
        self._metrics = Metrics(config, self._gauges, rejections)
        self._solver = SolverLink(
            section,
            work_address=self._work_address,
            doors=self._doors,
            rng=random.Random(section.id),
        )
        self._admission = Admission(
            config, served=self._solver.serves, now_s=asyncio.get_running_loop().time()
        )
        self.store = make_store(section.store)
        keeper = Keeper(section, self.store)
        self.files = FileStore(section, self.store, time_s=keeper.time_s)
        self.driver = Driver(
            section,
            keeper,
            self._metrics,
            tell=self._tell,
            admission=self._admission,
            unread=self._unread,
        )
        intake, keys = Intake(config, self._solver.models), ApiKeys(section)
        self.webhooks = Webhooks(section, self.store, self._metrics, time_s=keeper.time_s)
        keeper.news = ResponseNews(self.webhooks)
        sight = Sight(self.driver, self.store)
        responses = ResponseIntake(intake, sight, section.limits)
        self.batches = Batches(
            config,
            store=self.store,
            files=self.files,
            driver=self.driver,
            intake=intake,
            responses=responses,
            keys=keys,
            solver=self._solver,
            metrics=self._metrics,
            webhooks=self.webhooks,
            time_s=keeper.time_s,
        )
        self._solver.bulks = self.batches
        self.tracing = self._make_tracing() if section.tracing.endpoint else None
        batch_desk = BatchDesk(self.batches)
        self.page = self._make_page(sight, batch_desk) if section.ui.enabled else None
        self._desk = Desk(
            config=config,
            driver=self.driver,
            intake=intake,
            responses=responses,
            solver=self._solver,
            metrics=self._metrics,
            keys=keys,
            sight=sight,
            files=self.files,
            batches=batch_desk,
            rejections=rejections,
            page=self.page,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._work = WorkServicer(
            self.driver,
            message_bytes_max=section.limits.message_bytes_max,
            rejections=rejections,
        )
        self._servers: tuple[grpc.aio.Server, ...] = ()
        self._http: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._agents_address = section.agents_listen

    async def start(self) -> Addresses:
        """Open the store, listen, and begin to dial the solver. Raises QlmError."""
        section = self._config.gateway
        self._warn_of_listeners()
        sock = http_socket(section)
        try:
            most = self._room.grpc
            clients, at = clients_server(
                self._desk, self._health, self._certificates, connections_max=most
            )
            agents, self._agents_address = agents_server(
                self._desk, self._work, self._health, self._doors, connections_max=most
            )
            self._servers = (clients, agents)
            await self.driver.start()
            await self.webhooks.open()
            await self.files.open()
            await self.batches.open()
            for server in self._servers:
                await server.start()
        except BaseException:
            sock.close()
            raise
        connections = Connections(
            section.limits, connections_max=self._room.http, unread=self._unread
        )
        tls = self._certificates
        self._http = HttpServer(self._desk, connections, None if tls is None else tls.http_server())
        self._tasks.append(asyncio.create_task(self._http.serve([sock])))
        await self._http.listening.wait()
        self._tasks.append(asyncio.create_task(self._solver.run(self.driver.handle)))
        self._tasks.append(asyncio.create_task(self.files.run()))
        if self.page is not None:
            self._tasks.append(asyncio.create_task(self.page.run()))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        host, _ = parse_address(section.http_listen, "gateway.http_listen")
        addresses = Addresses(f"{host}:{sock.getsockname()[1]}", at, self._agents_address)
        said = {"http": addresses.http, "grpc": addresses.grpc, "agents": addresses.agents}
        log.info("gateway ready", extra=said)
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
            self.batches.stop_releasing()
            if self.page is not None:
                self.page.close()
            await self.driver.drain()
            self._http.should_exit = True
        self._work.close()
        await asyncio.gather(*(server.stop(CUT_S) for server in self._servers))
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._solver.close()
        await self.batches.close()
        await self.webhooks.close()
        await self.files.close()
        await self.driver.close()
        if self.tracing is not None:
            await self.tracing.close()
        log.info("gateway stopped")

    # ---------------------------------------------------------------- parts

    def _make_page(self, sight: Sight, batches: BatchDesk) -> Hub:
        loop = asyncio.get_running_loop()
        section = self._config.gateway.ui
        tally = Tally(loop.time)
        self._metrics.watching.append(tally.ended)
        stories = Stories(section.stories_max, now_s=loop.time, row=self._row)
        self._listening.append(stories.told)

        async def listed() -> list[Json]:
            everybody = Caller(tenant="", operator=True)
            found = await batches.list(everybody, after="", limit=BATCHES_SHOWN)
            return [batch_of(batch) for batch in found.batches]

        return Hub(
            self._config,
            solver=self._solver,
            batches=listed,
            rows=sight.newest,
            tally=tally,
            stories=stories,
            now_s=loop.time,
        )

    def _make_tracing(self) -> Tracing:
        def evictions(id: RequestId) -> int:
            row = self._row(id)
            return 0 if row is None else row.evictions

        loop = asyncio.get_running_loop()
        tracing = Tracing(
            self._config.gateway, now_s=loop.time, live=self.driver.live, evictions=evictions
        )
        self._listening.append(tracing.told)
        return tracing

    def _row(self, id: RequestId) -> Row | None:
        return self.driver.ledger.row(id)

    def _tell(self, fact: GatewayFact) -> None:
        for listen in self._listening:
            listen(fact)
        self._solver.tell(fact)

    def _work_address(self) -> str:
        return self._config.gateway.advertise or self._agents_address

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", CLIENT_SERVICE, WORK_SERVICE):
            await self._health.set(service, status)

    def _warn_of_listeners(self) -> None:
        warn_of_open_doors(self._config, "gateway.")
        host, _ = parse_address(self._work_address(), "gateway.advertise")
        if host.strip("[]") in WILDCARDS:
            said = {"told": self._work_address(), "remedy": "set gateway.advertise"}
            log.warning("agents on other hosts cannot find this gateway", extra=said)

    def _gauges(self) -> Iterator[Gauge]:
        yield from self.driver.gauges()
        yield from self.files.gauges()
        yield from self.batches.gauges()
        yield from self.webhooks.gauges()
        held = {"waiting": self._admission.bodies.used, "unread": self._unread.used}
        if self._http is not None:
            connections, uploads = self._http.connections, self._http.uploads
            yield (
                "qlm_http_connections",
                "HTTP connections, by whether a request is under way.",
                ("state", connections.counts()),
            )
            held["uploading"] = uploads.budget.used
        values = {kind: float(size) for kind, size in held.items()}
        yield "qlm_held_bytes", "Bytes that count against a budget, by which.", ("budget", values)
        yield (
            "qlm_solver_connected",
            "Whether a solver session is open.",
            float(self._solver.connected),
        )
