"""Puts the solver together: driver, gRPC server, planner processes, metrics endpoint."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.doors import Doors, Guard, Rejections, warn_of_open_doors
from protos.identity import SOLVER, Role
from protos.metrics_door import serve_metrics
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from qlm_core.config import Config, SolverConfig
from solver.driver import Driver
from solver.metrics import ManagerCollector
from solver.planning import ConfiguredPlanner
from solver.pool import Pool
from solver.sessions import AgentSessions, GatewaySessions

log = logging.getLogger("qlm.solver")

_GATEWAYS = gateway_pb.DESCRIPTOR.services_by_name["GatewaySessionService"].full_name
_AGENTS = agent_pb.DESCRIPTOR.services_by_name["AgentSessionService"].full_name
_SERVICES = (_GATEWAYS, _AGENTS)
_STOP_S = 1.0


async def serve(config: Config, *, ready: Callable[[], None] | None = None) -> None:
    """Run the solver until SIGTERM or SIGINT.

    Args:
        ready: called once requests can be served.

    Raises:
        QlmError: an address cannot be listened on.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    section = config.solver
    doors, rejections = Doors(config, SOLVER), Rejections()
    warn_of_open_doors(config, "solver.")
    pool = Pool(section)
    planner = ConfiguredPlanner(section, pool)
    driver = Driver(config, planner, clock=time.monotonic)
    server, address = await make_server(driver, section, doors, rejections)
    metrics = None
    if section.metrics_listen:
        metrics = await serve_metrics(
            ManagerCollector(driver, planner.counts, rejections),
            config,
            section.metrics_listen,
            key="solver.metrics_listen",
            doors=doors,
            rejections=rejections,
        )
    await pool.start()
    try:
        await server.start()
        log.info("solver ready", extra={"listen": address, "backend": section.backend})
        if ready is not None:
            ready()
        await stopping.wait()
    finally:
        log.info("solver stops")
        await server.stop(_STOP_S)
        await driver.close()
        await pool.close()
        if metrics is not None:
            await metrics.cleanup()


async def make_server(
    driver: Driver, section: SolverConfig, doors: Doors, rejections: Rejections
) -> tuple[grpc.aio.Server, str]:
    """The solver's gRPC server, not started, and its address. Raises QlmError."""
    any_part = doors.parts(*Role)
    checks = {
        _GATEWAYS: doors.parts(Role.GATEWAY),
        _AGENTS: doors.parts(Role.AGENT),
        health.SERVICE_NAME: any_part,
        reflection.SERVICE_NAME: any_part,
    }
    server = grpc.aio.server(
        interceptors=[Guard("solver", checks, rejections)],
        options=[
            ("grpc.max_receive_message_length", section.limits.message_bytes_max),
            ("grpc.max_send_message_length", section.limits.message_bytes_max),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    gateway_grpc.add_GatewaySessionServiceServicer_to_server(
        GatewaySessions(driver, section.limits, rejections), server
    )
    agent_grpc.add_AgentSessionServiceServicer_to_server(
        AgentSessions(driver, section.limits, rejections), server
    )
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing from the stubs
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    for service in ("", *_SERVICES):
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    return server, doors.listen(server, "solver.listen", section.listen)
