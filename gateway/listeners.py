"""The addresses that a gateway listens on: HTTP and gRPC for clients, gRPC for agents, each with who may call what.

A client's key opens nothing at the agents' listener, and an agent's certificate nothing at the clients': a service is only
registered where its callers come in, and each listener has a guard of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.access import App, GrpcAccess, HttpAccess
from gateway.connections import Connection, Connections
from gateway.desk import Desk
from gateway.grpc_client import ClientServicer, keyed
from gateway.http import HttpApp
from gateway.uploads import Uploads
from gateway.work import WorkServicer
from protos.certificates import Certificates
from protos.doors import Check, Doors, Guard, anyone, listen
from protos.identity import Role
from protos.qlm.v1 import client_service_pb2, work_service_pb2
from protos.qlm.v1 import client_service_pb2_grpc as client_grpc
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core.config import GatewayConfig
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError

# A servicer of grpc_health's asyncio kind, which its stubs leave out.
Health = Any

BACKLOG = 2048
# A stranger has this long to begin to speak HTTP/2.
HANDSHAKE_S = 10
# More than a client's message holds beside the body of a request.
_MESSAGE_REST_BYTES = 65_536
CLIENT_SERVICE = client_service_pb2.DESCRIPTOR.services_by_name["ClientService"].full_name
WORK_SERVICE = work_service_pb2.DESCRIPTOR.services_by_name["WorkService"].full_name


def client_certificates(section: GatewayConfig) -> Certificates | None:
    """What clients see of TLS; None without. Raises QlmError where it cannot be read."""
    if not section.tls.cert:
        return None
    return Certificates("gateway.tls", cert=section.tls.cert, key=section.tls.key)


def clients_server(
    desk: Desk, checks: Health, certificates: Certificates | None, *, connections_max: int
) -> tuple[grpc.aio.Server, str]:
    """The server of gRPC clients, not started, and its address. Raises QlmError."""
    section = desk.config.gateway
    known = keyed(desk)
    # A load balancer has no key, and learns only whether the gateway drains.
    may = {CLIENT_SERVICE: known, reflection.SERVICE_NAME: known, health.SERVICE_NAME: anyone}
    guard = Guard("grpc", may, desk.rejections)
    # Twice a body, so that who sends a little too much is told the limit; gRPC's own refusal names no field.
    received_max = 2 * section.limits.body_bytes_max + _MESSAGE_REST_BYTES
    log = [GrpcAccess(CLIENT_SERVICE)] if desk.config.log.access else []
    server = _server(section, [*log, guard], may, checks, connections_max, received_max)
    client_grpc.add_ClientServiceServicer_to_server(ClientServicer(desk), server)
    return server, listen(server, "gateway.grpc_listen", section.grpc_listen, certificates)


def agents_server(
    desk: Desk, work: WorkServicer, checks: Health, doors: Doors, *, connections_max: int
) -> tuple[grpc.aio.Server, str]:
    """The server of agents, not started, and its address. Raises QlmError."""
    section = desk.config.gateway
    agents = doors.parts(Role.AGENT)
    may = {WORK_SERVICE: agents, reflection.SERVICE_NAME: agents, health.SERVICE_NAME: agents}
    guard = Guard("agents", may, desk.rejections)
    received_max = section.limits.message_bytes_max
    server = _server(section, [guard], may, checks, connections_max, received_max)
    work_grpc.add_WorkServiceServicer_to_server(work, server)
    return server, doors.listen(server, "gateway.agents_listen", section.agents_listen)


def _server(
    section: GatewayConfig,
    interceptors: Sequence[Any],
    services: Mapping[str, Check],
    checks: Health,
    connections_max: int,
    received_max: int,
) -> grpc.aio.Server:
    limits = section.limits
    server = grpc.aio.server(
        interceptors=interceptors,
        options=(
            # Two processes on one port would share its connections in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", received_max),
            ("grpc.max_send_message_length", limits.message_bytes_max),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_allowed_incoming_connections", connections_max),
            ("grpc.max_concurrent_streams", limits.grpc_streams_max),
            ("grpc.max_connection_idle_ms", int(limits.idle_s_max * 1000)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
            ("grpc.max_metadata_size", limits.header_bytes_max),
            # Peers ping to notice a dead connection; none is punished for doing it often.
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            ("grpc.http2.max_ping_strikes", 0),
        ),
    )
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(tuple(services), server)
    return server


class HttpServer(uvicorn.Server):
    """uvicorn with bounds on its connections, and without its own handling of signals, start-up and logs."""

    def __init__(self, desk: Desk, connections: Connections, tls: ssl.SSLContext | None) -> None:
        # uvicorn calls it as it would a class.
        protocol: Any = functools.partial(Connection, connections)
        self.uploads = Uploads(connections.limits.uploading_bytes_max)
        app: App = HttpApp(desk, connections, self.uploads)
        super().__init__(
            uvicorn.Config(
                HttpAccess(app) if desk.config.log.access else app,
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                # Floats are as good, and uvicorn's types as narrow as its command line.
                timeout_keep_alive=connections.limits.idle_s_max,  # type: ignore[arg-type]
                timeout_graceful_shutdown=1,
            )
        )
        self._tls = tls
        self.connections = connections
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.connections.sweep()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.ssl = self._tls
        await super().startup(sockets)
        self.listening.set()


def http_socket(section: GatewayConfig) -> socket.socket:
    """A listening socket for HTTP. Raises QlmError naming the setting."""
    key, address = "gateway.http_listen", section.http_listen
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
